# Computes.
# expect: TLE

while True:
    pass
