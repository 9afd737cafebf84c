# Sixteen million lines.
# expect: WA|OLE

print("\n" * 16_000_000 + "x")
