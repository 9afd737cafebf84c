# A socket of family 40.
# expect: AC

import socket
try:
    s = socket.socket(40, socket.SOCK_STREAM)
    print("ESCAPED")
except OSError:
    print("held")
