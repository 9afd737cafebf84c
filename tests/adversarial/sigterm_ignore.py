# Ignores SIGTERM and computes on.
# expect: TLE

import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    pass
