# A byte order mark.
# expect: AC|CE
# source: '\ufeffprint("held")'
