# Processes the Python way.
# expect: RE

import multiprocessing
with multiprocessing.Pool(2) as pool:
    print(pool.map(abs, [1]))
