# Sends the supervisor what no runner sends.
# expect: RE

import os
os.write(3, bytes(range(256)) * 100)
