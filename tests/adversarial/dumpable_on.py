# Makes itself readable again.
# expect: AC

import ctypes
print("ESCAPED" if ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0 else "held")
