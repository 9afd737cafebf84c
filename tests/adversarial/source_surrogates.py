# Half a character.
# expect: CE
# source: 'print("\ud800")'
