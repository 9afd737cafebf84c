# A print that prints something else; its business.
# expect: WA

import builtins
builtins.print = lambda *a, **k: None
print("held")
