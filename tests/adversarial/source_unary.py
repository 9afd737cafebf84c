# An expression a hundred thousand operators deep.
# expect: CE|RE|WA
# source: '-' * 100000 + '1'
