# A hundred megabytes.
# expect: CE
# source: '#' * (100 << 20)
