# A socket of family 38.
# expect: AC

import socket
try:
    s = socket.socket(38, socket.SOCK_SEQPACKET)
    print("ESCAPED")
except OSError:
    print("held")
