# Global at module.
# expect: AC

global x
x = 1
def f():
    global x
    x += 1
f()
print("held" if x == 2 else "?")
