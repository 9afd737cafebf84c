# Standard output by its path, beside print.
# expect: AC

import sys
print("he", end="", flush=True)
with open("/dev/stdout", "w") as out:
    out.write("ld\n")
print("what", file=open("/dev/stderr", "w"))
