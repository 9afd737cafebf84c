# Keyrings, shared between processes of a user.
# expect: SV

import ctypes, platform
def syscall(x86, arm, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args), ctypes.get_errno()

result, error = syscall(250, 219, 0, -3, 0)
print("ESCAPED" if result >= 0 else "held")
