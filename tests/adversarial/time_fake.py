# Sets its own clock back.
# expect: TLE

import time
time.time = time.monotonic = time.perf_counter = time.process_time = lambda: 0.0
while True:
    pass
