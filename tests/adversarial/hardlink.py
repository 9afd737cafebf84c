# A hard link to what it may read.
# expect: AC

import os, random
try:
    os.link(random.__file__, "/tmp/link")
    print("ESCAPED")
except OSError:
    print("held")
