# Leases and notices on files that all workers see.
# expect: AC

import fcntl, os, random
reached = 0
for command in (fcntl.F_SETLEASE, fcntl.F_NOTIFY, fcntl.F_SETOWN, fcntl.F_SETPIPE_SZ):
    try:
        fcntl.fcntl(open(random.__file__), command, 1)
        reached += 1
    except OSError:
        pass
print("ESCAPED" if reached else "held")
