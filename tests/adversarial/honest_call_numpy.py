# NumPy's numbers.
# mode: call f
# args: [[1, 2, 3]]
# expected: [6, [2, 4, 6]]
# expect: AC
# limits: cpu_s=5

import numpy as np
def f(x):
    a = np.array(x)
    return [a.sum(), a * 2]
