# Fills the table of files.
# expect: AC

made = 0
try:
    while made < 5000:
        open(f"/tmp/f{made}", "w").close()
        made += 1
except OSError:
    pass
print("held" if made <= 1000 else "ESCAPED")
