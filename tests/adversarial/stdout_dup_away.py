# Moves descriptor 1 and writes to where it was.
# expect: AC

import os
keep = os.dup(1)
os.close(1)
os.write(keep, b"held\n")
