# Sleeps and computes by turns, to pass for idle.
# expect: TLE|ILE

import time
while True:
    time.sleep(0.001)
    for _ in range(10000):
        pass
