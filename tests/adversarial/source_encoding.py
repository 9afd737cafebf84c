# A declaration of an encoding that does not hold.
# expect: AC
# source: '# coding: utf-16\nprint("held")'
