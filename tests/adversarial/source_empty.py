# Nothing at all.
# expect: WA
# source: ''
