# Reads its own memory from end to end: what its parents held when they forked.
# expected: @SECRET@
# expect: WA|RE
# limits: cpu_s=20

import ctypes, re, sys
top = id(object())
found = set()
libc = ctypes.CDLL(None)
vec = ctypes.create_string_buffer(1)
start = (top & ~0xFFF) - (8 << 20)
for page in range(start, start + (16 << 20), 4096):
    if libc.mincore(ctypes.c_void_p(page), ctypes.c_size_t(4096), vec) == 0:
        try:
            text = ctypes.string_at(page, 4096)
        except Exception:
            continue
        found.update(re.findall(b"secret-" + b"[0-9a-f]{32}", text))
print(*[f.decode() for f in found] or ["nothing"])
