# Os write.
# expect: AC

import os
os.write(1, b"held\n")
