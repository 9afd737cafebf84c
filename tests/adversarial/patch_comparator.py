# Replaces functions of the harness in its own process.
# expect: WA|RE|ILE

import sys
for module in list(sys.modules.values()):
    for name in list(vars(module)):
        if "compare" in name or "strip" in name or "equal" in name or name in ("_answer", "difference"):
            try:
                setattr(module, name, lambda *a, **k: None)
            except Exception:
                pass
print("wrong")
