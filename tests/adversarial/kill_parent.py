# Kills its parent.
# expect: AC

import os
for pid in (os.getppid(), 1, 2, 3):
    for signal in (9, 15, 19, 0):
        try:
            os.kill(pid, signal)
            print("ESCAPED", pid)
        except OSError:
            pass
print("held")
