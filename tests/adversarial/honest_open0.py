# Open0.
# expect: AC

print("held" if open(0).read() == "7\n" else "?")
