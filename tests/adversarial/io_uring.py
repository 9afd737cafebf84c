# System calls behind the filter's back.
# expect: SV

import ctypes, platform
def syscall(x86, arm, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args), ctypes.get_errno()

result, error = syscall(425, 425, 8, ctypes.create_string_buffer(256))
print("ESCAPED" if result >= 0 else "held")
