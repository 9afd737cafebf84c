# State between tests.
# expect: AC

import builtins, sys, random, decimal
assert not hasattr(builtins, "seen")
builtins.seen = 1
assert sys.getrecursionlimit() == 1000
sys.setrecursionlimit(5000)
sys.stdin.close()
print("held")
