# A socket of family 17.
# expect: AC

import socket
try:
    s = socket.socket(17, socket.SOCK_RAW)
    print("ESCAPED")
except OSError:
    print("held")
