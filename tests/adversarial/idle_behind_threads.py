# Sleeps, with a new thread now and then that is always about to run.
# expect: ILE|TLE

import threading, time
while True:
    threading.Thread(target=time.perf_counter).start()
    time.sleep(0.02)
