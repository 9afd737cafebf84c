# Two processes do not share a random state.
# twice: differ
# expect: AC

import random, sys
print("held")
print(random.random(), file=sys.stderr)
