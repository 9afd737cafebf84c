# Redirect stdout.
# expect: AC

import io, contextlib
with contextlib.redirect_stdout(io.StringIO()) as s:
    print("hidden")
print("held" if s.getvalue() == "hidden\n" else "?")
