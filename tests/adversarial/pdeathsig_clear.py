# Wants to outlive its parent.
# expect: AC

import ctypes
print("ESCAPED" if ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0 else "held")
