# A database in a file of its own.
# expect: AC

import os, sqlite3, tempfile
try:
    where = os.path.join(tempfile.mkdtemp(), "x.db")
except FileNotFoundError:
    where = ":memory:"  # nothing can be written in the reduced form
with sqlite3.connect(where) as base:
    base.execute("create table t(x)")
    base.executemany("insert into t values (?)", [(i,) for i in range(100)])
with sqlite3.connect(where if where != ":memory:" else where) as again:
    if where == ":memory:":
        again = base
    (total,) = again.execute("select sum(x) from t").fetchone()
print("held" if total == 4950 else total)
