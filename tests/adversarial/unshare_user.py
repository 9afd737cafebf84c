# A user namespace, and with it all rights inside.
# expect: SV

import ctypes, platform
def syscall(x86, arm, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args), ctypes.get_errno()

result, error = syscall(272, 97, 0x10000000)
print("ESCAPED" if result >= 0 else "held")
