# Mmap stdin.
# expect: AC

import mmap
with mmap.mmap(0, 0, access=mmap.ACCESS_READ) as m:
    print("held" if m[:] == b"7\n" else "?")
