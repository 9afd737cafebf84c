# Reads from the control channel, where the next tests' word to go comes in.
# expect: ILE

import os
os.read(3, 100000)
print("held")
