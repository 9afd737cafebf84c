# Thread recursion.
# expect: AC
# limits: cpu_s=5

import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(512 << 20)
def depth(n):
    return 0 if n == 0 else max([depth(n - 1)]) + 1
def main():
    print("held" if depth(100_000) == 100_000 else "?")
t = threading.Thread(target=main)
t.start()
t.join()
