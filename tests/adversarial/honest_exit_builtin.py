# Exit builtin.
# expect: AC

print("held")
exit()
