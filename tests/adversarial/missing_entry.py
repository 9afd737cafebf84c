# Defines something else.
# mode: call Solution().solve
# args: [1]
# expected: 2
# expect: RE MissingEntryPoint

def solve(x):
    return 2
