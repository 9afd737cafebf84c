# A list that shows different elements to each who asks.
# mode: call f
# args: [1]
# expected: [1, 2]
# expect: WA

class L(list):
    def __eq__(self, other):
        return True
    def __len__(self):
        return 2
def f(x):
    return L([3])
