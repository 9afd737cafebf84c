# A socket of family 16.
# expect: AC

import socket
try:
    s = socket.socket(16, socket.SOCK_RAW)
    print("ESCAPED")
except OSError:
    print("held")
