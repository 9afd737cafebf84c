# A session of its own.
# expect: AC

import os
try:
    os.setsid()
    print("ESCAPED")
except OSError:
    print("held")
