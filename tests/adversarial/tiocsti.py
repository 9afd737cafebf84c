# Types into the owner's terminal.
# expect: AC

import fcntl, os
reached = 0
for fd in (0, 1, 2):
    try:
        fcntl.ioctl(fd, 0x5412, b"x")
        reached += 1
    except OSError:
        pass
try:
    os.close(os.open("/dev/tty", os.O_RDWR))
    reached += 1
except OSError:
    pass
print("ESCAPED" if reached else "held")
