# Numpy.
# expect: AC
# limits: cpu_s=5

import numpy as np
a = np.arange(6).reshape(2, 3)
print("held" if (a @ a.T).tolist() == [[5, 14], [14, 50]] else "?")
