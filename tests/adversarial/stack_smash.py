# Overwrites its own stack.
# expect: RE|MLE|TLE

import ctypes
a = ctypes.c_int(0)
ctypes.memset(ctypes.addressof(a), 0x41, 1 << 20)
print("held")
