# Thread recursion, with a stack that the one of the test before does not do for.
# expect: AC
# limits: cpu_s=5
# tests: 12

import sys, threading, time
sys.setrecursionlimit(10**6)
threading.stack_size((512 << 20) + time.monotonic_ns() % 1000 * 4096)
def depth(n):
    return 0 if n == 0 else max([depth(n - 1)]) + 1
def main():
    print("held" if depth(100_000) == 100_000 else "?")
t = threading.Thread(target=main)
t.start()
t.join()
