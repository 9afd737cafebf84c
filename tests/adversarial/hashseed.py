# The order of a set of strings is the same in every run.
# expect: AC

print("held" if hash("agpo") == @HASH@ else "other")
