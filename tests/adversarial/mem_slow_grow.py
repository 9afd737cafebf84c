# Grows by and by.
# expect: MLE
# limits: memory_mb=100 cpu_s=20

x = []
while True:
    x.append(b"x" * 100000 + str(len(x)).encode())
