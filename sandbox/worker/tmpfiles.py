"""Empty a folder in which a program wrote what it liked."""

import errno
import os
import stat

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # the program has made something of that name


def empty(path: str) -> None:
    """Remove everything below `path`, following no link, at any depth, without recursion.

    Each folder's children are first moved up to the top, so a chain of a thousand folders needs neither a deep stack
    nor a long path. Names there are our own.
    """
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    fresh = 0
    try:
        while names := os.listdir(top):
            for name in names:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                try:
                    for child in os.listdir(inner):
                        if not stat.S_ISDIR(os.lstat(child, dir_fd=inner).st_mode):
                            os.unlink(child, dir_fd=inner)
                            continue
                        os.chmod(child, 0o700, dir_fd=inner)  # a folder that cannot be written cannot be moved
                        while True:
                            fresh += 1
                            try:
                                os.rename(child, f".gone-{fresh}", src_dir_fd=inner, dst_dir_fd=top)
                                break
                            except OSError as e:
                                if e.errno not in _TAKEN:
                                    raise
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
