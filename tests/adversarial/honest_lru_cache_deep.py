# Lru cache deep.
# expect: AC

import sys
from functools import lru_cache
sys.setrecursionlimit(10**6)
@lru_cache(None)
def f(n):
    return 0 if n == 0 else f(n - 1) + 1
print("held" if f(20000) == 20000 else "?")
