# Pools of threads by the name of processes, and their locks and shared values.
# expect: AC

import multiprocessing
from multiprocessing.dummy import Pool
from multiprocessing.pool import ThreadPool
with Pool(2) as one, ThreadPool(2) as other:
    found = one.map(abs, [-1, 2]) + other.map(abs, [-3])
lock = multiprocessing.Lock()
with lock, multiprocessing.RLock(), multiprocessing.Semaphore(2):
    assert not lock.acquire(block=False)
try:
    shared = multiprocessing.Value("i", 41), multiprocessing.Array("i", [1, 2])
    with shared[0]:
        shared[0].value += 1
    assert shared[0].value == 42 and shared[1][:] == [1, 2]
except FileNotFoundError:
    pass  # the reduced form has no writable path
print("held" if found == [1, 2, 3] and multiprocessing.cpu_count() else found)
