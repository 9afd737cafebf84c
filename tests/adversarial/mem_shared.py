# Shared anonymous memory, which RLIMIT_DATA does not count.
# expect: MLE|RE
# limits: memory_mb=100

import mmap
x = []
while True:
    m = mmap.mmap(-1, 10 << 20)
    m.write(b"x" * (10 << 20))
    x.append(m)
