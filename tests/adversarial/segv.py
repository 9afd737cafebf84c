# Reads address 0.
# expect: RE

import ctypes
ctypes.string_at(0)
