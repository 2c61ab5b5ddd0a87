"""System calls that Python 3.11 lacks, for the short-lived helper processes of this package.

Only helpers import this module: ctypes costs 4 ms and a megabyte that the shim process saves.
Every function raises ``OSError`` with the errno of the call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal

__all__ = [
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "attach_tree",
    "clone_tree",
    "die_with_parent",
    "enter_private_mounts",
    "enter_user_namespace",
    "keep_capabilities",
    "mount",
    "protect_mounts",
]

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18

_AT_FDCWD = -100
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_PR_SET_PDEATHSIG, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 23, 24, 38
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
"""The same numbers on every architecture."""
_AT_RECURSIVE, _AT_EMPTY_PATH = 0x8000, 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_ATTRIBUTES = {MS_RDONLY: 1, MS_NOSUID: 2, MS_NODEV: 4, MS_NOEXEC: 8}
"""MOUNT_ATTR_* of mount_setattr(2) for the MS_* of mount(2)."""
_LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def die_with_parent(parent: int) -> None:
    """Be killed when the process ``parent``, which started us, ends. Survives execve(2)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)  # it died before it could be watched


def enter_private_mounts() -> None:
    """Move to a mount namespace of our own, from which no mount reaches the host's."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    mount(b"none", b"/", b"", MS_REC | MS_PRIVATE)


def enter_user_namespace() -> None:
    """Move to a user namespace of our own, in which every id means what it means outside.

    Files keep their owners, and our capabilities hold for files and for what we make in there, but
    for nothing else of the host's. Only single-threaded processes can do that.
    """
    texts = {kind: _identity(f"/proc/self/{kind}_map") for kind in ("uid", "gid")}
    ours = os.getpid()
    entered, tell = os.pipe()
    # Only somebody who stays outside may map more than one id.
    writer = os.fork()
    if writer == 0:
        try:
            os.close(tell)
            os.read(entered, 1)
            for kind, text in texts.items():
                with open(f"/proc/{ours}/{kind}_map", "w") as file:
                    file.write(text)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(entered)
    try:
        _check(_libc.unshare(_CLONE_NEWUSER), "unshare")
    finally:
        os.close(tell)
        _, status = os.waitpid(writer, 0)
    if status:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), "uid_map")


def _identity(path: str) -> str:
    with open(path) as file:
        ranges = [line.split() for line in file]
    return "".join(f"{first} {first} {count}\n" for first, _, count in ranges)


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes = b"") -> None:
    """Call mount(2)."""
    result = _libc.mount(source, target, kind, ctypes.c_ulong(flags), data or None)
    _check(result, os.fsdecode(target))


def clone_tree(fd: int, *, recursive: bool) -> int:
    """Return a descriptor of a copy of the mount that ``fd`` lies in, rooted at ``fd``, unattached.

    A bind mount in two steps (open_tree(2), Linux 5.2): the second may be taken in another mount
    namespace, in which the descriptor itself could not be bound.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    return _check(_libc.syscall(_SYS_OPEN_TREE, fd, b"", flags), "open_tree")


def attach_tree(tree: int, target: bytes) -> None:
    """Mount at ``target`` what ``clone_tree`` returned."""
    result = _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH)
    _check(result, os.fsdecode(target))


def protect_mounts(path: bytes, flags: int, *, recursive: bool) -> None:
    """Set MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC on the mount at ``path``, and those below it.

    Uses mount_setattr(2) of Linux 5.12; before that, only the mount at ``path`` can be changed, and
    a recursive request fails with ENOSYS rather than protect half of it.
    """
    bits = sum(bit for flag, bit in _ATTRIBUTES.items() if flags & flag)
    attributes = (ctypes.c_uint64 * 4)(bits, 0, 0, 0)  # struct mount_attr: set, clear, ...
    size = ctypes.sizeof(attributes)
    depth = _AT_RECURSIVE if recursive else 0
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR, _AT_FDCWD, path, depth, ctypes.byref(attributes), size
    )
    _check(result, os.fsdecode(path))


def keep_capabilities(keep: frozenset[int]) -> None:
    """Let the programs that we execute from now on have no capability but ``keep``."""
    for number in range(_LAST_CAPABILITY + 1):
        if number in keep:
            continue
        if _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) < 0:
            break  # the kernel knows no more
        _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "PR_CAPBSET_DROP")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
