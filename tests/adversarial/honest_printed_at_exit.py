# What destructors and atexit print.
# expect: AC

import atexit
atexit.register(print, "l", end="")
class A:
    def __init__(self, text):
        self.text, self.me = text, self
    def __del__(self):
        print(self.text, end="")
def main():
    A("h").me = None
    print("e", end="")
main()
a = A("d")
