# Print file out.
# expect: AC

import sys
sys.stdout = open(1, "w")
print("held")
