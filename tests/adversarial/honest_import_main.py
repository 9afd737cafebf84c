# Import main.
# expect: AC

import __main__
value = 5
print("held" if __main__.value == 5 else "?")
