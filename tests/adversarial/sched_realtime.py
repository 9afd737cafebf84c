# Takes the processor for itself.
# expect: AC

import ctypes, platform
def syscall(x86, arm, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args), ctypes.get_errno()

result, error = syscall(144, 119, 0, 1, ctypes.create_string_buffer(b"\x01\0\0\0"))
print("ESCAPED" if result >= 0 else "held")
