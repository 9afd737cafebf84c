# Closes its streams and computes on.
# expect: TLE

import os
os.close(0); os.close(1); os.close(2)
while True:
    pass
