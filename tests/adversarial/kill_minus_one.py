# Kills everybody.
# expect: AC

import os
for pid in (-1, 0, -os.getpgrp()):
    try:
        os.kill(pid, 9)
        print("ESCAPED")
    except OSError:
        pass
print("held")
