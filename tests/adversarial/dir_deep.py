# A folder a thousand deep, for whoever cleans up.
# expect: AC

import os
depth = 0
try:
    os.chdir("/tmp")
    while depth < 990:
        os.mkdir("d")
        os.chdir("d")
        depth += 1
except OSError:
    pass
print("held")
