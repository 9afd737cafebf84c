# A shell, the short way.
# expect: AC

import os
print("ESCAPED" if os.system("true") == 0 else "held")
