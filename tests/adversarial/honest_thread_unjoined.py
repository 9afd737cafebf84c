# Thread unjoined.
# expect: AC

import threading, time
def late():
    time.sleep(0.05)
    print("held")
threading.Thread(target=late).start()
