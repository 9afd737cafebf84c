# Nor times.
# expect: AC

import os, random
try:
    os.utime(random.__file__)
    print("ESCAPED")
except OSError:
    print("held")
