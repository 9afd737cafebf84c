# Leaves with success before answering.
# expect: WA

import sys
sys.exit(0)
