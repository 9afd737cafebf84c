# Files on standard output that the interpreter closes at its end, in their order.
# expect: AC

import os, sys
out = open(1, "w", closefd=False)
out.write("h")
def inner():
    os.fdopen(os.dup(1), "w").write("e")
out.flush()
inner()
print("l", end="")
sys.stdout.flush()
last = os.fdopen(1, "w")
last.write("d\n")
