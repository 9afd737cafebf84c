# A new stack limit is answered, not taken; every other one is refused.
# expect: AC

import resource
before = resource.getrlimit(resource.RLIMIT_STACK)
resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))
reached = resource.getrlimit(resource.RLIMIT_STACK) != before
for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
    try:
        resource.setrlimit(kind, (-1, -1))
        reached = True
    except (ValueError, OSError):
        pass
print("ESCAPED" if reached else "held")
