# Standard input by its path, in every way there is.
# expect: AC

import os, pathlib, sys
same = []
for read in (
    lambda: open("/dev/stdin").read(),
    lambda: pathlib.Path("/dev/fd/0").read_text(),
    lambda: os.read(os.open("/proc/self/fd/0", os.O_RDONLY), 100).decode(),
):
    os.lseek(0, 0, os.SEEK_SET)
    same.append(read() == "7\n")
os.lseek(0, 0, os.SEEK_SET)
sys.stdin = open("/dev/stdin")
assert os.path.exists("/dev/stdin") and int(input()) == 7
print("held" if all(same) else same)
