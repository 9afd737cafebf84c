# The same as a subclass of int: only its number leaves.
# mode: call f
# args: [1]
# expected: 2
# expect: WA

class Any(int):
    def __eq__(self, other):
        return True
    def __int__(self):
        return 2
    def __hash__(self):
        return hash(2)
def f(x):
    return Any(1)
