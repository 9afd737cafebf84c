# Fills the disk.
# expect: AC

total = 0
try:
    with open("/tmp/fill", "wb") as f:
        while total < 200 << 20:
            total += f.write(b"x" * (1 << 20))
except OSError:
    pass
print("held" if total <= 70 << 20 else "ESCAPED")
