# Warnings stderr.
# expect: AC

import sys, warnings
warnings.warn("careful")
print("debug", file=sys.stderr)
print("held")
