# Opens a file by its inode, past every path: the way out of old containers.
# expect: SV

import ctypes, platform
def syscall(x86, arm, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args), ctypes.get_errno()

result, error = syscall(304, 265, -100, ctypes.create_string_buffer(64), 0)
print("ESCAPED" if result >= 0 else "held")
