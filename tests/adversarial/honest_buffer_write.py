# Buffer write.
# expect: AC

import sys
sys.stdout.buffer.write(b"held\n")
