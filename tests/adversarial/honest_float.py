# A sum of floats in another order.
# mode: call f
# args: [0.1, 0.2]
# expected: 0.3
# expect: AC

def f(a, b):
    return a + b
