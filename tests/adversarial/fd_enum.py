# Every descriptor it has must be one of its own streams.
# expect: AC

import fcntl, os, stat
odd = []
for fd in range(0, 4096):
    try:
        s = os.fstat(fd)
    except OSError:
        continue
    # streams are files in memory; the control channel is a socket to the supervisor, which can only be told "done"
    if not (stat.S_ISREG(s.st_mode) or (fd == 3 and stat.S_ISSOCK(s.st_mode))):
        odd.append(fd)
    elif stat.S_ISREG(s.st_mode) and s.st_size > 100:
        odd.append(fd)
print("ESCAPED" if odd else "held", *odd)
