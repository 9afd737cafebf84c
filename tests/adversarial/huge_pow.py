# A number too large to compute.
# expect: TLE|MLE

print(9 ** 9 ** 9 % 7)
