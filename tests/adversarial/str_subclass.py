# A str that prints as another one.
# mode: call f
# args: [1]
# expected: "right"
# expect: WA

class S(str):
    def __eq__(self, other):
        return True
    def __str__(self):
        return "right"
    __repr__ = __str__
    __hash__ = str.__hash__
def f(x):
    return S("wrong")
