# Sleep short.
# expect: AC

import time
time.sleep(0.1)
print("held")
