# A list that holds itself.
# mode: call f
# args: [1]
# expected: [1]
# expect: BAD_RESULT|RE

def f(x):
    a = []
    a.append(a)
    return a
