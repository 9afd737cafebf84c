# Computes only around the moments at which it might be looked at.
# expect: ILE|TLE

import time
start = time.time()
while True:
    while time.time() < start + 0.19:
        time.sleep(0.001)
    while time.time() < start + 0.21:
        pass
    start += 0.2
