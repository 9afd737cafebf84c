# Replaces the stream and prints into nothing.
# expect: WA

import io, sys
sys.stdout = io.StringIO()
print("held")
