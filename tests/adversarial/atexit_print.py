# Prints only at exit; a script may do that.
# expect: AC

import atexit
atexit.register(print, "held")
