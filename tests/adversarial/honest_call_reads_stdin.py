# A module that reads standard input finds it empty, not its arguments.
# expect: AC
# mode: call f
# args: [3, 4]
# expected: 7

import sys
rest = sys.stdin.read()
try:
    input()
except EOFError:
    rest += "end"
def f(a, b):
    return a + b if rest == "end" else rest
