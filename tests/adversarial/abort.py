# Aborts.
# expect: RE

import os
os.abort()
