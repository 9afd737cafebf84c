# Subclasses of the plain types.
# mode: call f
# args: ["aab"]
# expected: {"a": 2, "b": 1}
# expect: AC

from collections import Counter
def f(x):
    return Counter(x)
