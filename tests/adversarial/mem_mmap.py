# Maps anonymous memory.
# expect: MLE|RE
# limits: memory_mb=100

import mmap
x = []
while True:
    m = mmap.mmap(-1, 10 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.write(b"x" * (10 << 20))
    x.append(m)
