# Nesting that overflows the parser.
# expect: CE
# source: '(' * 100000
