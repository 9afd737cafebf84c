# Deep recursion in a call.
# expect: AC
# mode: call f
# args: [3, 4]
# expected: 7

import sys
sys.setrecursionlimit(10**6)
def f(a, b):
    def g(n):
        return n and 1 + g(n - 1)
    return a + b if g(20000) else 0
