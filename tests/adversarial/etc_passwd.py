# The accounts of the machine.
# expect: AC

import os
for path in ("/etc/passwd", "/etc/shadow", "/root/.ssh/id_rsa", "/home", "/var/log", "/run/docker.sock", "/var/run/docker.sock"):
    try:
        os.listdir(path) if os.path.isdir(path) else open(path).read()
        print("ESCAPED", path)
    except OSError:
        pass
print("held")
