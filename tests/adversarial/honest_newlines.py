# Only a line feed ends a line of standard input, as on Linux.
# expect: AC
# input: "a\rb\r\n"

import sys
print("held" if sys.stdin.read() == "a\rb\r\n" else "?")
