# The same by thread.
# expect: AC

import ctypes, platform
def syscall(x86, arm, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args), ctypes.get_errno()

import os, threading
result, error = syscall(234, 131, os.getpid(), threading.get_native_id(), 9)
print("ESCAPED" if result == 0 else "held")
