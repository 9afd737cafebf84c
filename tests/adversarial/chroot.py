# Changes the root, the old way.
# expect: SV

import ctypes, platform
def syscall(x86, arm, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args), ctypes.get_errno()

result, error = syscall(161, 51, b"/tmp")
print("ESCAPED" if result >= 0 else "held")
