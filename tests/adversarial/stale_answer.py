# Leaves an answer for the next test behind.
# expect: AC|WA

import os
print("held", flush=True)
for _ in range(3):
    os.write(3, b"kc" + bytes(2))
os._exit(0)
