# Quit string.
# expect: AC

print("held")
quit(0)
