# Reads the descriptors of others through /proc.
# expect: AC

import os
reached = []
for pid in (os.getppid(), 1, os.getpid(), "self", "thread-self"):
    try:
        reached += os.listdir(f"/proc/{pid}/fd")
    except OSError:
        pass
print("ESCAPED" if reached else "held")
