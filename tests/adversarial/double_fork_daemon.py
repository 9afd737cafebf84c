# A daemon.
# expect: RE PermissionError

import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("@CANARY_DIR@/daemon", "w").write("x")
