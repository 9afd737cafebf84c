# Changes how its streams and its channel behave for whoever else holds them.
# expect: AC|RE|WA

import fcntl, os
for fd in (0, 1, 2, 3, 10, 11, 12, 13):
    for flags in (os.O_NONBLOCK, os.O_APPEND, os.O_DIRECT, os.O_NOATIME, os.O_ASYNC, 0x7FFFFFFF):
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        except OSError:
            pass
    try:
        os.lseek(fd, 1 << 40, os.SEEK_SET)
    except OSError:
        pass
os.ftruncate(1, 0)
os.lseek(1, 0, os.SEEK_SET)
print("held")
