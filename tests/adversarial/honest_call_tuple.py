# A tuple for a list, an integer for a float.
# mode: call f
# args: [1]
# expected: [1, 2.0, "x", null, true]
# expect: AC

def f(x):
    return (1, 2, 'x', None, True)
