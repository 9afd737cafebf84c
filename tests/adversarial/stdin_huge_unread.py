# Never reads its input.
# input: 'x' * (20 << 20)
# expect: AC

print("held")
