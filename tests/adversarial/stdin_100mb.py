# Reads a hundred megabytes.
# input: 'x' * (100 << 20)
# expect: AC
# limits: cpu_s=5

import sys
print("held" if len(sys.stdin.buffer.read()) == 100 << 20 else "short")
