# The same inside a called function.
# mode: call f
# args: [1]
# expected: 2
# expect: BAD_RESULT

import os
def f(x):
    os._exit(0)
