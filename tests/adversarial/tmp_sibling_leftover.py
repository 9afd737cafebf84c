# Leaves a file and finds that of the program before.
# twice: yes
# expect: AC

import os
try:
    print("ESCAPED" if os.path.exists("/tmp/left") else "held")
    open("/tmp/left", "w").close()
except OSError:
    pass
