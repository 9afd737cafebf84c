# A thread that prints after the end.
# expect: WA

import threading, time
def late():
    time.sleep(0.3)
    print("held", flush=True)
threading.Thread(target=late, daemon=True).start()
