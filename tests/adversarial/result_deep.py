# Nested ten thousand deep.
# mode: call f
# args: [1]
# expected: [1]
# expect: BAD_RESULT

def f(x):
    a = []
    for _ in range(10000):
        a = [a]
    return a
