# A loop in C that never looks at signals.
# expect: TLE

sum(range(10**12))
