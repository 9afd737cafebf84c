# A shell.
# expect: RE PermissionError

import subprocess
subprocess.run(["/bin/sh", "-c", "id"])
