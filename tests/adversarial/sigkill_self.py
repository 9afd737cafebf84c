# Kills itself the way an operator would, to be taken for a failure of the sandbox.
# expect: RE PermissionError

import os, signal
os.kill(os.getpid(), signal.SIGKILL)
