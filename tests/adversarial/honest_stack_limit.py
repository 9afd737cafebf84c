# Asks for a larger stack, as many do who recurse.
# expect: AC

import resource, sys
for wanted in ((-1, -1), (1 << 28, -1), (resource.getrlimit(resource.RLIMIT_STACK)[1],) * 2):
    resource.setrlimit(resource.RLIMIT_STACK, wanted)
sys.setrecursionlimit(10**6)
def f(n):
    return n and 1 + f(n - 1)
print("held" if f(20000) == 20000 else "?")
