# Recursion that keeps what it has.
# expect: MLE|RE|TLE
# limits: memory_mb=100

import sys
sys.setrecursionlimit(10**9)
def f(x):
    return f([x] * 100) + 1
f([])
