# Stops itself.
# expect: ILE

import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
print('held')
