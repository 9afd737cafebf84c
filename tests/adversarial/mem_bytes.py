# One large block.
# expect: MLE
# limits: memory_mb=100

x = bytearray(600 << 20)
x[::4096] = b"x" * len(x[::4096])
print(len(x))
