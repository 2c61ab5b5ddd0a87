"""Helper process: put one file or directory where virtiofsd finds it, and become virtiofsd.

The source arrives as a descriptor, opened by the shim when it checked it, so that neither a
symbolic link exchanged meanwhile nor an odd character in its name matters. It is bound below a
private tmpfs in a mount namespace of our own, with the flags that were asked for: a guest cannot
talk the host's kernel out of a read-only mount. A single file is bound into a directory in which
nothing else is, and which nobody can write. All of it is gone when virtiofsd is.

virtiofsd is root, for files keep their owners, but root of a user namespace of its own, entered
when the mounts are made: what it may do to the files of its share it may do to nothing else.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Any, NoReturn

from shims.microvm import syscalls
from shims.microvm.helpers import helper_environment, helper_request

__all__ = ["FILE_NAME", "PLACE", "main"]

PLACE = "/tmp"  # noqa: S108  hidden by our tmpfs, and there on every host
"""Where the staging tmpfs is mounted, in the helper's mount namespace only."""
FILE_NAME = "file"
"""The name that a single file has in its share, whatever it is called on the host."""

_SHARE = f"{PLACE}/share"
_SETTING_UP = frozenset({8, 21})
"""SETPCAP and SYS_ADMIN: virtiofsd moves its worker to namespaces and takes these from it."""
_MOST_FILES = 1_000_000
"""Each file that the guest knows takes one. virtiofsd would ask for as many, but may not."""


def main() -> None:
    """Carry out the request. On failure one sentence goes to stderr."""
    request = helper_request()
    step = "watch the shim"
    try:
        syscalls.die_with_parent(request["parent"])
        step = "join the cgroup"
        for path in request["cgroups"]:
            with open(path, "w") as group:
                group.write("0")
        program = os.open(request["program"], os.O_RDONLY | os.O_CLOEXEC)
        step = "stage the share"
        _stage(request)
        step = "enter a user namespace (is user.max_user_namespaces 0?)"
        _leave_privileges(request)
        step = "run virtiofsd"
        _become(program, request)
    except OSError as error:
        sys.stderr.write(f"cannot {step}: {error.strerror} ({error.filename or 'system call'})\n")
        sys.exit(1)


def _stage(request: dict[str, Any]) -> None:
    recursive = request["recursive"] and not request["is_file"]
    tree = syscalls.clone_tree(request["source"], recursive=recursive)
    os.close(request["source"])
    syscalls.enter_private_mounts()
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount(b"none", PLACE.encode(), b"tmpfs", flags, b"mode=755,size=64k")
    os.mkdir(_SHARE, 0o755)
    target = _SHARE
    if request["is_file"]:
        target = f"{_SHARE}/{FILE_NAME}"
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    syscalls.attach_tree(tree, target.encode())
    syscalls.protect_mounts(target.encode(), request["flags"], recursive=recursive)
    syscalls.protect_mounts(PLACE.encode(), syscalls.MS_RDONLY, recursive=False)


def _leave_privileges(request: dict[str, Any]) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MOST_FILES, _MOST_FILES))
    except ValueError:
        pass  # not permitted: then virtiofsd has what we have
    os.setgroups([])
    syscalls.enter_user_namespace()
    syscalls.keep_capabilities(_SETTING_UP | frozenset(request["capabilities"]))
    syscalls.die_with_parent(request["parent"])  # again: it is forgotten when ids or rights change


def _become(program: int, request: dict[str, Any]) -> NoReturn:
    argv = [word.replace("@SHARE@", _SHARE) for word in request["argv"]]
    os.set_inheritable(request["listener"], True)
    os.execve(program, argv, helper_environment())  # noqa: S606
