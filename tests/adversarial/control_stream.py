# Small frames and sleeps: never idle when it is looked at.
# expect: BAD_RESULT|ILE

import os, time
while True:
    os.write(3, b"mc" + bytes(2) + b"7")
    time.sleep(0.03)
