# Raises its own limits.
# expect: AC

import ctypes, platform
def syscall(x86, arm, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args), ctypes.get_errno()

result, error = syscall(302, 261, 0, 0, ctypes.create_string_buffer(16), 0)
print("ESCAPED" if result >= 0 else "held")
