# Reserves space without writing.
# expect: AC

import os
try:
    fd = os.open("/tmp/big", os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, 1 << 30)
    print("ESCAPED")
except OSError:
    print("held")
