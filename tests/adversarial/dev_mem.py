# The machine's memory and disks as files.
# expect: AC

import os
reached = []
for name in ("mem", "kmem", "port", "sda", "vda", "kmsg", "fuse", "kvm", "net/tun", "vsock", "ptmx", "tty", "loop-control"):
    try:
        os.close(os.open("/dev/" + name, os.O_RDONLY))
        reached.append(name)
    except OSError:
        pass
print("ESCAPED" if reached else "held")
