# The owner's environment is not here.
# expect: AC

import os
print("ESCAPED" if "AGPO_CANARY" in os.environ or len(os.environ) > 12 else "held")
