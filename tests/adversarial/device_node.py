# Makes the disk appear.
# expect: AC

import os, stat
try:
    os.mknod("/tmp/disk", 0o666 | stat.S_IFBLK, os.makedev(8, 0))
    print("ESCAPED")
except OSError:
    print("held")
