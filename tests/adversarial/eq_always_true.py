# A result that is equal to everything.
# mode: call f
# args: [1]
# expected: 2
# expect: BAD_RESULT

class Any:
    def __eq__(self, other):
        return True
    __hash__ = None
def f(x):
    return Any()
