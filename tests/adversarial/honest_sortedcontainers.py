# Sortedcontainers.
# expect: AC

from sortedcontainers import SortedList
print("held" if list(SortedList([3, 1, 2])) == [1, 2, 3] else "?")
