# A child that outlives it and prints.
# expect: RE PermissionError

import os, time
if os.fork() == 0:
    time.sleep(1)
    print("held")
