# The abstract namespace, which no path guards.
# expect: AC

import socket
try:
    s = socket.socket(socket.AF_UNIX)
    s.connect("\0agpo-canary-@PORT@")
    s.send(b"escaped")
    print("ESCAPED")
except OSError:
    print("held")
