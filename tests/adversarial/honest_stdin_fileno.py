# Stdin fileno.
# expect: AC

import os, io, sys
input = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline
print("held" if input() == b"7\n" else "?")
