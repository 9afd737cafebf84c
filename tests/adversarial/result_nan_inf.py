# NaN is equal to nothing.
# mode: call f
# args: [1]
# expected: 1.5
# expect: WA

def f(x):
    return float('nan')
