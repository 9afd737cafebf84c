# A process without fork.
# expect: RE PermissionError

import os
os.posix_spawn("/bin/true", ["true"], {})
print("ESCAPED")
