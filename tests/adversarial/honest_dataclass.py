# Dataclass.
# expect: AC

from dataclasses import dataclass
@dataclass(order=True)
class P:
    x: int
print("held" if P(1) < P(2) else "?")
