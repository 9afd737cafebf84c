# Shared memory by name.
# expect: AC

from multiprocessing import shared_memory
try:
    shared_memory.SharedMemory("agpo", create=True, size=4096)
    print("ESCAPED")
except (OSError, ImportError):
    print("held")
