# Blocks in blocks.
# expect: CE
# source: ''.join(' ' * i + 'if 1:\n' for i in range(200))
