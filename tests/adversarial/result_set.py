# A set has no order.
# mode: call f
# args: [1]
# expected: [1]
# expect: BAD_RESULT

def f(x):
    return {1}
