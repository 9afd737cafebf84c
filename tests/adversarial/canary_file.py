# A file outside that anybody may read.
# expect: AC

try:
    open("@CANARY@").read()
    print("ESCAPED")
except OSError:
    print("held")
