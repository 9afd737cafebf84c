# Nested as deep as a parser takes, and a little less, written past the encoder.
# expect: BAD_RESULT|WA
# mode: call f
# args: [1]
# expected: [[1]]

import os, time
def f(x):
    depth = 976 + os.getpid() % 14
    os.write(13, b"[" * depth + b"]" * depth)
    os.write(3, b"kd" + bytes(2))
    time.sleep(5)
