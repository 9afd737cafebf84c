# A link to outside, opened through.
# expect: AC

import os
try:
    os.symlink("/etc/passwd", "/tmp/link")
    open("/tmp/link").read()
    print("ESCAPED")
except OSError:
    print("held")
