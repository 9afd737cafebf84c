# Buffer readlines.
# expect: AC

import sys
print("held" if sys.stdin.buffer.readlines() == [b"7\n"] else "?")
