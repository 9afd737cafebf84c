# Executor.
# expect: AC

from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as e:
    print("held" if sum(e.map(abs, range(-5, 5))) == 25 else "?")
