# Prints while it works.
# mode: call f
# args: [1]
# expected: 2
# expect: AC

def f(x):
    print('debug')
    return x + 1
