# Deep recursion main.
# expect: AC
# limits: cpu_s=5

import sys
sys.setrecursionlimit(300000)
def f(n):
    return 0 if n == 0 else f(n - 1) + 1
print("held" if f(200000) == 200000 else "?")
