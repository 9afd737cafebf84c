# Buffer readline.
# expect: AC

import sys
r = sys.stdin.buffer.readline
print("held" if r() == b"7\n" and r() == b"" else "?")
