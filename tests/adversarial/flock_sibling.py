# A lock on a file that all workers see: a channel between them.
# expect: AC

import fcntl, random
reached = 0
for lock in (lambda f: fcntl.flock(f, fcntl.LOCK_EX), lambda f: fcntl.lockf(f, fcntl.LOCK_SH)):
    try:
        lock(open(random.__file__))
        reached += 1
    except OSError:
        pass
print("ESCAPED" if reached else "held")
