# Chooses its processor, to starve there.
# expect: AC

import os
try:
    os.sched_setaffinity(0, {0})
    print("ESCAPED")
except OSError:
    print("held")
