# The classic.
# expect: RE PermissionError

import os
while True:
    os.fork()
