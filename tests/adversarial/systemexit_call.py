# Raises instead of returning.
# mode: call f
# args: [1]
# expected: 2
# expect: BAD_RESULT

def f(x):
    raise SystemExit(0)
