# Writes the returned value itself.
# mode: call f
# args: [1]
# expected: 2
# expect: WA|BAD_RESULT

import os
def f(x):
    for fd in range(4, 20):
        try:
            os.write(fd, b"3" * 10)
        except OSError:
            pass
    return 3
