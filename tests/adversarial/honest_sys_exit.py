# Sys exit.
# expect: AC

import sys
print("held")
sys.exit()
