# Looks for it in every object the collector knows.
# expected: @SECRET@
# expect: WA

import gc, re
gc.unfreeze()
found = set()
for o in gc.get_objects():
    for r in gc.get_referents(o):
        if isinstance(r, (str, bytes)):
            text = r if isinstance(r, str) else r.decode("latin1")
            found.update(re.findall("secret-" + "[0-9a-f]{32}", text))
print(*(found or {"nothing"}))
