# Tmp file.
# expect: AC

import tempfile
try:
    with tempfile.TemporaryFile() as f:
        f.write(b"x")
except OSError:
    pass  # the reduced form has no writable path
print("held")
