# A null byte.
# expect: CE
# source: 'print(1)\x00'
