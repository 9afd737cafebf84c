# Writes into its own input for the next test.
# expect: AC

import os
try:
    os.pwrite(0, b"planted", 0)
    os.ftruncate(0, 1 << 20)
except OSError:
    pass
print("held")
