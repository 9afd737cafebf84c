# Opens until no more can be opened.
# expect: AC

import os
fds = []
try:
    while len(fds) < 5000:
        fds.append(os.dup(0))
except OSError:
    pass
print("held" if len(fds) < 300 else "ESCAPED")
