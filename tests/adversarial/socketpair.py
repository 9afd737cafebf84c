# Even a pair of its own.
# expect: AC

import socket
try:
    socket.socketpair()
    print("ESCAPED")
except OSError:
    print("held")
