# Typing hints.
# expect: AC

import typing
class A:
    def f(self, x: "int") -> "A": ...
print("held" if typing.get_type_hints(A.f)["return"] is A else "?")
