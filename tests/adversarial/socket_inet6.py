# A socket of family AF_INET6.
# expect: AC

import socket
try:
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    print("ESCAPED")
except OSError:
    print("held")
