# Tells the supervisor that the test is done, again and again.
# expect: WA|RE

import os
for _ in range(3):
    os.write(3, b"kc" + bytes(2))
print("held")
os._exit(0)
