# A float that compares as it likes.
# mode: call f
# args: [1]
# expected: 2.5
# expect: WA

class F(float):
    def __eq__(self, other):
        return True
    def __sub__(self, other):
        return 0.0
    __rsub__ = __sub__
    __hash__ = float.__hash__
def f(x):
    return F(1.0)
