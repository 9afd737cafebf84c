# Threads.
# expect: AC

import threading
out = []
ts = [threading.Thread(target=out.append, args=(i,)) for i in range(20)]
[t.start() for t in ts]
[t.join() for t in ts]
print("held" if sorted(out) == list(range(20)) else "?")
