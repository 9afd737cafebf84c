# Floods the control channel.
# expect: RE|TLE|ILE

import os
while True:
    os.write(3, b"x" * 1000)
