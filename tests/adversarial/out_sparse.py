# Claims an enormous output by seeking.
# expect: AC|OLE|WA|RE

import os
try:
    os.ftruncate(1, 1 << 40)
    print("ESCAPED")
except OSError:
    print("held")
