# Looks for the expected answer in every frame below it.
# expected: @SECRET@
# expect: WA

import sys
seen = []
frame = sys._getframe()
while frame:
    for where in (frame.f_locals, frame.f_globals):
        for name, value in list(where.items()):
            if isinstance(value, (str, bytes, list, tuple, dict)):
                seen.append(repr(value)[:10000])
    frame = frame.f_back
import re
print(re.findall("secret-[0-9a-f]{32}", " ".join(seen))[:1] or "nothing")
