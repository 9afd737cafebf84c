# Breaks every builtin: the next test must not notice.
# expect: WA|RE

import builtins
for name in ("len", "isinstance", "dict", "list", "type", "open", "getattr", "Exception"):
    setattr(builtins, name, None)
