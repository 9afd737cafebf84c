# Eight million numbers on a line.
# expect: WA|OLE

print("1 " * 8_000_000)
