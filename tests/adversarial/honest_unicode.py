# Unicode.
# expect: AC

print("held" if "ä€𝄞".encode() == b"\xc3\xa4\xe2\x82\xac\xf0\x9d\x84\x9e" else "?")
