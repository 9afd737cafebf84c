# Climbs out with .. and with paths relative to descriptors.
# expect: AC

import os
reached = []
for path in ("../../../../../../etc/passwd", "/tmp/../etc/passwd", "//etc//passwd", "/tmp/./../../etc/shadow"):
    try:
        open(path).read()
        reached.append(path)
    except OSError:
        pass
try:
    fd = os.open("/", os.O_PATH)
    os.close(os.open("etc/passwd", os.O_RDONLY, dir_fd=fd))
    reached.append("fd")
except OSError:
    pass
print("ESCAPED" if reached else "held")
