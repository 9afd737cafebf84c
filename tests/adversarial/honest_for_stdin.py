# For stdin.
# expect: AC

import sys
for line in sys.stdin:
    print("held" if line == "7\n" else line)
