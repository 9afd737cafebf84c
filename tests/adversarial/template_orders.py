# Speaks to the process it was forked from.
# expect: AC

import os
for fd in range(4, 64):
    try:
        os.write(fd, b"f")
    except OSError:
        pass
try:
    os.kill(os.getppid(), 0)
    print("ESCAPED")
except OSError:
    os.ftruncate(1, 0)
    os.lseek(1, 0, 0)
    print("held")
