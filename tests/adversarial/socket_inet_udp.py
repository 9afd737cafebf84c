# A socket of family AF_INET.
# expect: AC

import socket
try:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    print("ESCAPED")
    s.connect(("127.0.0.1", @PORT@))
except OSError:
    print("held")
