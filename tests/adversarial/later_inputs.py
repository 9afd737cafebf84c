# Inputs of later tests, in every frame and object it can reach.
# expect: AC
# input: "of-a-test"

import gc, os, sys
marker = os.read(0, 100)
gc.unfreeze()
frame, found = sys._getframe(1), []
while frame:
    for name, value in frame.f_locals.items():
        if marker in repr(getattr(value, "__dict__", value)).encode() and name not in ("source", "names"):
            found.append(name)
    frame = frame.f_back
for o in gc.get_objects():
    parts = o.values() if isinstance(o, dict) and o is not globals() else o if isinstance(o, (list, tuple)) else ()
    if any(isinstance(x, (bytes, bytearray, memoryview)) and marker in bytes(x) for x in list(parts)):
        found.append(type(o))
print("ESCAPED" if found else "held", *found)
