# Future imports belong to the program alone.
# expect: AC
# source: 'from __future__ import annotations\ndef f(x: nothing): pass\nprint("held")'
