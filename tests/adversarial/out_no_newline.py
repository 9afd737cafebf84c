# One endless line past the limit.
# expect: OLE

import os
while True:
    os.write(1, b'x' * 65536)
