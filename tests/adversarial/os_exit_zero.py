# Leaves with success past every clean-up.
# expect: WA

import os
os._exit(0)
