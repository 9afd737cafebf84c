# Prints instead of returning.
# mode: call f
# args: [1]
# expected: 2
# expect: WA

def f(x):
    print(2)
