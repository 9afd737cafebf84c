# The stand-in for shared semaphores reaches no other process.
# expect: AC

import _multiprocessing, os
lock = _multiprocessing.SemLock(1, 1, 1, "/agpo-canary", False)
try:
    found = os.listdir("/dev/shm")
except OSError:
    found = []
print("ESCAPED" if found else "held")
