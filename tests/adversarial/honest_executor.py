# Executors, one of which nobody shuts down: the interpreter's end does.
# expect: AC

from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as e:
    right = sum(e.map(abs, range(-5, 5))) == 25
ThreadPoolExecutor(2).submit(lambda: print("held" if right else "?"))
