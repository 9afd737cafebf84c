# Opens /proc/sysrq-trigger.
# expect: AC

import os
reached = []
for pid in (os.getppid(), 1, os.getpid()):
    for mode in ("rb", "ab"):
        try:
            open("/proc/sysrq-trigger".replace("{p}", str(pid)), mode).close()
            reached.append(pid)
        except OSError:
            pass
print("ESCAPED" if reached else "held")
