# Nested lists, closed.
# expect: CE
# source: '[' * 5000 + ']' * 5000
