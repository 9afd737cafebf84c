# A json module that answers for it.
# mode: call f
# args: [1]
# expected: 2
# expect: WA|BAD_RESULT|RE

import json
json.dumps = lambda value, **k: "[]"
json.loads = lambda text, **k: [1]
def f(x):
    return 3
