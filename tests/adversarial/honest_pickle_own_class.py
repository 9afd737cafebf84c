# Pickle own class.
# expect: AC

import pickle
class A:
    x = 1
print("held" if pickle.loads(pickle.dumps(A())).x == 1 else "?")
