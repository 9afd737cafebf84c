# Fills /tmp and its streams, so that the supervisor might have to die.
# expect: OLE|MLE|RE
# limits: memory_mb=64

import os
for fd in (0, 1, 2, 10, 11, 12, 13):
    try:
        while True:
            os.write(fd, b"x" * (1 << 20))
    except OSError:
        pass
try:
    with open("/tmp/fill", "wb") as f:
        while True:
            f.write(b"x" * (1 << 20))
except OSError:
    pass
x = bytearray(500 << 20)
x[::4096] = b"x" * len(x[::4096])
