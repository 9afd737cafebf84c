# Makes a pipe with a name.
# expect: AC

import os
try:
    os.mkfifo("/tmp/pipe")
    print("ESCAPED")
except OSError:
    print("held")
