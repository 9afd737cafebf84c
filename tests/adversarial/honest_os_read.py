# Os read.
# expect: AC

import os
print("held" if os.read(0, 100) == b"7\n" else "?")
