# Recursion in C until the stack is gone.
# expect: RE|MLE|TLE

import sys
sys.setrecursionlimit(10**9)
x = []
for _ in range(10**6):
    x = [x]
repr(x)
