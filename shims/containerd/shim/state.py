"""Where a shim keeps its state, and the lock that lets one process at a time change it.

::

    <runtime>/s/<hash>                       the socket containerd connects to
    <runtime>/shim/<namespace>/<group>/      0700; its own lock (flock on the directory)
        daemon                               lines: "PID START-TIME ADDRESS" (where its containerd
                                             takes events), path of the socket, id and bundle of
                                             the container that start was called for
        options                              the runtime options that came with start
        members/<id>                         bundle of a further container of the group
        exits.jsonl resources.jsonl events.jsonl
    <runtime>/courier/<unique>/              events of a dead daemon, on their way
    <bundle>/void-group                      the group id, unless it is the container's own

The group id names the shim and the VM; a container outside a pod is its own group.
"""

from __future__ import annotations

import fcntl
import os
import time

from shims.containerd.shim.invocation import is_identifier
from shims.core.paths import runtime_path, state_path

__all__ = ["State", "group_of_bundle", "log_path", "private_directory"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from shims.containerd.shim.processes import Process

GROUP_FILE = "void-group"
_PRIVATE = 0o700
_LOCK_STEP = 0.005


class State:
    """The state directory of one group. As a context manager it holds the lock."""

    def __init__(self, namespace: str, group: str, environ: Mapping[str, str] = os.environ) -> None:
        self.namespace = namespace
        self.group = group
        self.directory = runtime_path("shim", namespace, group, environ=environ)
        self._lock = -1

    @property
    def exists(self) -> bool:
        """Whether the directory is there."""
        return os.path.isdir(self.directory)

    def lock(self, deadline: float, *, create: bool = True) -> Self:
        """Take the lock; raise TimeoutError at the deadline (time.monotonic()).

        Without ``create`` a missing directory raises FileNotFoundError.
        """
        while True:
            if create:
                private_directory(self.directory)
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if not self._try_lock(fd, deadline):
                os.close(fd)
                raise TimeoutError(f"{self.directory} is locked by another start or delete")
            # A delete may have removed the directory while we waited for its lock.
            if os.fstat(fd).st_nlink:
                self._lock = fd
                return self
            os.close(fd)

    def _try_lock(self, fd: int, deadline: float) -> bool:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # The kernel offers no lock with a deadline; holders are quick.
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_LOCK_STEP)
            else:
                return True

    def unlock(self) -> None:
        """Let the next one have it. May be repeated."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unlock()

    def daemon(self) -> Process | None:
        """Return the daemon if it still runs."""
        words = self.read("daemon").split()
        if len(words) < 2 or not (words[0].isdecimal() and words[1].isdecimal()):
            return None
        from shims.containerd.shim.processes import Process

        process = Process(int(words[0]), int(words[1]))
        return process if process.is_alive() else None

    def socket(self) -> str:
        """Return the path of the socket; empty when there is none."""
        lines = self.read("daemon").splitlines()
        return lines[1] if len(lines) > 1 else ""

    def events_address(self) -> str:
        """Return where the daemon's containerd takes events; empty when that is not known."""
        words = self.read("daemon").split("\n", 1)[0].split(" ", 2)
        return words[2] if len(words) > 2 else ""

    def set_daemon(self, process: str, socket: str, container: str, bundle: str) -> None:
        """Take note of the daemon ("PID START-TIME ADDRESS"), its socket and its first container.

        One file for all of it: a container outside a pod needs no other.
        """
        self.write("daemon", f"{process}\n{socket}\n{container}\n{bundle}\n")

    def first(self) -> tuple[str, str] | None:
        """Return id and bundle of the first container; None once it was deleted."""
        lines = self.read("daemon").splitlines()
        return (lines[2], lines[3]) if len(lines) > 3 else None

    def read(self, name: str) -> str:
        """Return the content of one of our files; empty when it is missing."""
        try:
            with open(f"{self.directory}/{name}", encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def read_options(self) -> bytes:
        """Return the runtime options that came with start, a serialized Any; may be empty."""
        try:
            with open(f"{self.directory}/options", "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def write(self, name: str, content: str | bytes) -> None:
        """Replace one of our files in one step."""
        write_file(f"{self.directory}/{name}", content)

    def add_member(self, container: str, bundle: str) -> None:
        """Take note of a container that came after the first. May be repeated."""
        if self.first() == (container, bundle):
            return
        private_directory(f"{self.directory}/members")
        self.write(f"members/{container}", bundle)

    def drop_member(self, container: str) -> None:
        """A container was deleted. May be repeated."""
        first = self.first()
        if first is not None and first[0] == container:
            lines = self.read("daemon").splitlines(keepends=True)
            self.write("daemon", "".join(lines[:2]))
        from shims.containerd.shim.removal import remove_tree

        remove_tree(f"{self.directory}/members/{container}")

    def members(self) -> dict[str, str]:
        """Return the bundles of this group's containers; without those whose bundle is gone."""
        try:
            names = os.listdir(f"{self.directory}/members")
        except FileNotFoundError:
            names = []
        bundles = {name: self.read(f"members/{name}") for name in names if is_identifier(name)}
        if (first := self.first()) is not None:
            bundles[first[0]] = first[1]
        return {name: bundle for name, bundle in bundles.items() if os.path.isdir(bundle)}

    def is_anothers(self, container: str, bundle: str) -> bool:
        """Return whether ``container`` is on record with another bundle that still exists.

        Then another containerd of this host has it under the same name.
        """
        first = self.first()
        known = first[1] if first and first[0] == container else self.read(f"members/{container}")
        try:
            return bool(known) and known != bundle and not os.path.samefile(known, bundle)
        except OSError:
            return False  # one of the two is gone

    def remove(self) -> None:
        """Remove the directory, and the namespace's when it was the last. May be repeated."""
        from shims.containerd.shim.removal import remove_tree

        remove_tree(self.directory)
        try:
            os.rmdir(os.path.dirname(self.directory))
        except OSError:  # another group is there
            pass


def write_file(path: str, content: str | bytes) -> None:
    """Write a file with mode 0600 so that readers see the old content or the new."""
    data = content.encode() if isinstance(content, str) else content
    temporary = f"{path}.{os.getpid()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
    os.rename(temporary, path)


def private_directory(path: str) -> None:
    """Make a directory with mode 0700, with its parents; one that exists must be ours."""
    try:
        os.mkdir(path, _PRIVATE)
    except FileExistsError:
        found = os.lstat(path)
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to user {found.st_uid}") from None
    except FileNotFoundError:
        private_directory(os.path.dirname(path))
        private_directory(path)


def group_of_bundle(bundle: str, container: str) -> str:
    """Return the group that start noted in the bundle; the container's own id without a note."""
    try:
        with open(f"{bundle}/{GROUP_FILE}", encoding="utf-8") as file:
            group = file.read(256).strip()
    except (FileNotFoundError, NotADirectoryError):
        return container
    return group if is_identifier(group) else container


def log_path(namespace: str, group: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of the daemon's bounded log."""
    return state_path("log", namespace, f"{group}.log", environ=environ)
