# A regular expression that backtracks for ever, in C.
# expect: TLE

import re
re.match("(a+)+$", "a" * 60 + "b")
