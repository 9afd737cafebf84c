# Replaces itself, and with it Landlock or the filter?
# expect: RE PermissionError

import os, sys
os.execv(sys.executable, [sys.executable, "-c", "print('ESCAPED')"])
