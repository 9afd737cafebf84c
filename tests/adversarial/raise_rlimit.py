# New limits are answered, not taken: by the library, and by the bare system call.
# expect: AC

import ctypes, platform, resource
def limits():
    return [resource.getrlimit(kind) for kind in range(16)]
before = limits()
number = 302 if platform.machine() == "x86_64" else 261
for kind in range(16):
    for wanted in ((-1, -1), (1 << 20, 1 << 20), (1 << 20, before[kind][1])):
        resource.setrlimit(kind, wanted)
    ctypes.CDLL(None).syscall(number, 0, kind, (ctypes.c_ulong * 2)(2**64 - 1, 2**64 - 1), 0)
print("held" if limits() == before else "ESCAPED")
