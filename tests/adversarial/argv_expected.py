# Command line, environment and module globals of the harness.
# expected: @SECRET@
# expect: WA

import os, re, sys
text = repr(sys.argv) + repr(sys.orig_argv) + repr(dict(os.environ))
for module in list(sys.modules.values()):
    for value in list(vars(module).values()):
        if isinstance(value, (str, bytes, list, dict, tuple)):
            text += repr(value)[:20000]
print((re.findall("secret-" + "[0-9a-f]{32}", text) or ["nothing"])[0])
