# An integer of ten thousand digits.
# mode: call f
# args: [1]
# expected: 7
# expect: BAD_RESULT

def f(x):
    return 7 * 10 ** 10000
