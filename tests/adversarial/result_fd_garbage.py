# Writes bytes that are not JSON where the value goes and leaves.
# mode: call f
# args: [1]
# expected: 2
# expect: BAD_RESULT

import os
def f(x):
    for fd in range(4, 20):
        try:
            os.write(fd, bytes(range(256)))
        except OSError:
            pass
    os._exit(0)
