# Landlock does not cover modes.
# expect: AC

import os, random
try:
    os.chmod(random.__file__, 0o777)
    print("ESCAPED")
except OSError:
    print("held")
