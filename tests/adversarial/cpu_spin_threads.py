# Computes in threads: all of them count.
# expect: TLE

import hashlib, threading
def burn():
    while True:
        hashlib.sha256(b"x" * 1_000_000).digest()
for _ in range(4):
    threading.Thread(target=burn).start()
