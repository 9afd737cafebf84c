# Imports all there is.
# expect: WA|RE|TLE|MLE|OLE|SV|ILE
# limits: cpu_s=3

import pkgutil
for module in list(pkgutil.iter_modules()):
    if module.name not in ("antigravity", "this", "idlelib", "turtle", "tkinter", "__main__"):
        try:
            __import__(module.name)
        except BaseException:
            pass
