# No processes, and the message says so.
# expect: AC

import multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
said = []
for attempt in (
    os.fork,
    lambda: multiprocessing.Pool(1),
    lambda: ProcessPoolExecutor(1).submit(abs, 1).result(),
    lambda: multiprocessing.Process(target=abs, args=(1,)).start(),
):
    try:
        attempt()
    except PermissionError as e:
        said.append("no program make processes" in str(e))
print("held" if said == [True] * 4 else said)
