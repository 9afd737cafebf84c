# Memory 500mb.
# expect: AC
# limits: cpu_s=5

x = bytearray(500 << 20)
x[::4096] = b"x" * len(x[::4096])
print("held")
