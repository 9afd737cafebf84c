# clone3, whose flags a filter cannot read.
# expect: AC

import ctypes, platform
def syscall(x86, arm, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args), ctypes.get_errno()

args = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)
result, error = syscall(435, 435, ctypes.byref(args), 88)
import os
if result == 0:
    os._exit(0)
print("ESCAPED" if result > 0 else "held", "" if error == 38 else error)
