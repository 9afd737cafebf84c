# A package that programs are not given is not there, wherever its files lie.
# expect: AC

try:
    import torch
except ImportError:
    print("held")
