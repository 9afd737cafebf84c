# The path and the text of the program itself.
# expect: AC

import inspect, os, traceback
def f():
    return 41 + 1
assert inspect.getsource(f).splitlines()[1] == "    return 41 + 1"
assert os.path.basename(__file__) and os.path.dirname(os.path.abspath(__file__))
try:
    1 / 0  # marked
except ZeroDivisionError:
    print("held" if "# marked" in traceback.format_exc() else "?")
