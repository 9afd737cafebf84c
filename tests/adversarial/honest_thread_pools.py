# Pools of threads by the name of processes.
# expect: AC

import multiprocessing
from multiprocessing.dummy import Pool
from multiprocessing.pool import ThreadPool
with Pool(2) as one, ThreadPool(2) as other:
    found = one.map(abs, [-1, 2]) + other.map(abs, [-3])
lock = multiprocessing.Lock()
with lock, multiprocessing.RLock(), multiprocessing.Semaphore(2):
    assert not lock.acquire(block=False)
print("held" if found == [1, 2, 3] and multiprocessing.cpu_count() else found)
