# Reads on after the end.
# expect: RE EOFError

input()
input()
