"""Namespaces, a root file system of the worker's own and Landlock, from nothing but system calls.

The new root holds, read-only, the standard library, the C libraries, the packages that were asked for and four devices;
/tmp is a small file system in memory. There is no /proc, no /sys, no /etc, no shell. Mounts are made with the calls
of Linux 5.12 (open_tree, mount_setattr, move_mount), so that the sources are held before anything covers them.
"""

import ctypes
import errno
import os
import stat
import sys

from sandbox.worker import libc

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
SCRATCH_MB, SCRATCH_INODES = 64, 1000
INNER_ID = 1000
FROM_TMP = "/outside"
"""what lies below /tmp on the machine is put below this instead: the programs' own /tmp covers the other"""
HOST_ID = 65534  # what root's programs are on the outside: the overflow id, which owns nothing

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_MAKE_CHAR, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
_ALL_V1 = (1 << 13) - 1
_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_ALL_BUT_USER = (
    libc.CLONE_NEWNS
    | libc.CLONE_NEWNET
    | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUTS
    | libc.CLONE_NEWCGROUP
    | libc.CLONE_NEWPID
)


def python_paths() -> list[str]:
    """Where this interpreter's standard library, the C libraries it has loaded and their data lie, without links."""
    version = "python{}.{}".format(*sys.version_info)
    paths = {os.path.dirname(os.__file__), os.path.join(sys.exec_prefix, sys.platlibdir, version)}
    paths = set(map(os.path.realpath, paths))
    stdlib = tuple(paths)
    with open("/proc/self/maps") as maps:
        loaded = {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}
    paths |= {os.path.dirname(path) for path in loaded if path.startswith("/") and not path.startswith(stdlib)}
    # For setlocale(LC_ALL, "") and zoneinfo
    paths |= {
        os.path.realpath(path) for path in ("/usr/lib/locale/C.utf8", "/usr/share/zoneinfo") if os.path.isdir(path)
    }
    return sorted(paths)


def enter_user_namespace() -> None:
    """For an ordinary owner, who has no rights outside: become INNER_ID with all rights inside."""
    uid, gid = os.getuid(), os.getgid()
    libc.call("unshare", libc.CLONE_NEWUSER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{INNER_ID} {uid} 1")
    _write("/proc/self/gid_map", f"{INNER_ID} {gid} 1")


def map_from_outside(proc: int, pid: int) -> None:
    """For root as owner: `pid` has made a user namespace; give its one user an id that owns nothing outside.
    `proc`: descriptor of /proc."""
    for name in ("uid_map", "gid_map"):
        with open(os.open(f"{pid}/{name}", os.O_WRONLY, dir_fd=proc), "w") as f:
            f.write(f"{INNER_ID} {HOST_ID} 1")


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def enter_other_namespaces() -> None:
    """The next child is process 1 of the new pid namespace."""
    libc.call("unshare", _ALL_BUT_USER)


def detached_proc() -> int:
    """A descriptor of a /proc of this pid namespace that is mounted nowhere, or -1: in a container it is refused."""
    try:
        context = libc.call("fsopen", b"proc\0", 1)
        libc.call("fsconfig", context, libc.FSCONFIG_CMD_CREATE, None, None, 0)
        fd = libc.call("fsmount", context, 1, libc.MS_RDONLY)
        os.close(context)
        return fd
    except OSError:
        return -1


def inside(path: str) -> str:
    """Where an absolute, resolved path of the machine lies in the new root."""
    return FROM_TMP + path if path.startswith("/tmp/") else path


def build_root(paths: list[str]) -> None:
    """Replace the root by one that holds `paths` (absolute, resolved), the devices and an empty /tmp."""
    libc.mount("/", "none", libc.MS_REC | libc.MS_PRIVATE)
    held = [(path, _hold(path, libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV)) for path in _outermost(paths)]
    held += [(path, _hold(path, libc.MS_NOSUID | libc.MS_NOEXEC)) for path in DEVICES]
    libc.mount("/tmp", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "size=1m,mode=755")
    for path, fd in held:
        target = "/tmp" + inside(path)
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        libc.call("move_mount", fd, b"\0", libc.AT_FDCWD, target.encode() + b"\0", libc.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(fd)
    for link in ("/lib", "/lib64"):  # where the loader looks for what an extension module needs
        if os.path.islink(link) and not os.path.lexists("/tmp" + link):
            os.symlink(os.readlink(link), "/tmp" + link)
    os.makedirs("/tmp/tmp", exist_ok=True)
    os.chdir("/tmp")
    libc.call("pivot_root", b".\0", b".\0")
    libc.call("umount2", b".", libc.MNT_DETACH)
    os.chdir("/")
    options = f"size={SCRATCH_MB}m,nr_inodes={SCRATCH_INODES},mode=1777"
    libc.mount("/tmp", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC, options)
    _set_flags(libc.AT_FDCWD, b"/\0", 0, libc.MS_RDONLY)


def _hold(path: str, flags: int) -> int:
    """A detached copy of the mount at `path`."""
    fd = libc.call(
        "open_tree",
        libc.AT_FDCWD,
        path.encode() + b"\0",
        libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC | libc.AT_RECURSIVE,
    )
    _set_flags(fd, b"\0", libc.AT_EMPTY_PATH | libc.AT_RECURSIVE, flags)
    return fd


def _set_flags(fd: int, path: bytes, at: int, flags: int) -> None:
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)  # MOUNT_ATTR_* have the values of MS_*
    libc.call("mount_setattr", fd, path, at, attributes, 32)


def _outermost(paths: list[str]) -> list[str]:
    """Without those that lie below another one."""
    kept: list[str] = []
    for path in sorted({os.path.realpath(p) for p in paths}):
        if not any(path.startswith(outer + "/") for outer in kept):
            kept.append(path)
    return kept


def _write(path: str, text: str) -> None:
    with open(path, "w") as f:
        f.write(text)


_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # the program has made something of that name


def empty(path: str) -> None:
    """Remove everything below `path`, where a program wrote what it liked: no link is followed, no depth too deep.

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


# Landlock: the kernel refuses every path but those listed, also to a process that got out of its root.


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32))


def landlock_abi() -> int:
    """The version of the interface that this kernel has; 0 when it has none or a seccomp filter hides it."""
    try:
        return libc.call("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def ruleset(version: int, read: list[str], write: list[str], names: list[str]) -> int:
    """A descriptor of a rule set: `read` may be read, files below `write` also be made, written and removed, and of
    `names` only the list of names."""
    handled = _ALL_V1
    handled |= _REFER if version >= 2 else 0
    handled |= _TRUNCATE if version >= 3 else 0
    handled |= _IOCTL_DEV if version >= 5 else 0
    attributes = _Ruleset(handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    fd = libc.call("landlock_create_ruleset", attributes, size, 0)
    special = _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _MAKE_FIFO | _EXECUTE | _IOCTL_DEV
    for path in read:
        _allow(fd, path, (_READ_FILE | _READ_DIR) & handled)
    for path in write:
        _allow(fd, path, handled & ~special)
    for path in names:
        _allow(fd, path, _READ_DIR)
    return fd


def restrict(ruleset_fd: int) -> None:
    """Apply to the calling thread and its children, for good. PR_SET_NO_NEW_PRIVS must have been set."""
    libc.call("landlock_restrict_self", ruleset_fd, 0)


def _allow(ruleset_fd: int, path: str, rights: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what cannot be reached needs no permission
    try:
        if not os.path.isdir(path):
            rights &= _FILE
        libc.call("landlock_add_rule", ruleset_fd, 1, _PathBeneath(rights, target), 0)
    finally:
        os.close(target)
