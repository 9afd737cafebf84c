# Prints two megabytes.
# expected: ('x' * 99 + '\n') * 20000
# expect: AC

for _ in range(20000):
    print('x' * 99)
