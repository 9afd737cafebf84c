# A promise of a result.
# mode: call f
# args: [1]
# expected: [1]
# expect: BAD_RESULT

def f(x):
    yield 1
