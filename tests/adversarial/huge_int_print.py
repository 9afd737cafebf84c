# An integer too long to print.
# expect: RE ValueError

print(10 ** 100000)
