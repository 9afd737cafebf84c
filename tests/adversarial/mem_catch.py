# Catches the MemoryError and goes on allocating.
# expect: MLE|TLE
# limits: memory_mb=100

x = []
while True:
    try:
        x.append(bytearray(b"x" * (1 << 20)))
    except MemoryError:
        pass
