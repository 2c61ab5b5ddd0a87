"""A cgroup of its own for each QEMU: in every hierarchy of the host, v1, v2 or both.

A container runtime names a group by the OCI ``cgroupsPath``: a path (cgroupfs driver) or
``slice:prefix:name`` (systemd driver). QEMU's group stands beside the container's, in the same
parent, so the pod's limits and its accounting hold for the whole VM.

Documentation of the files used here: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of the
kernel. Formats of /proc/self/mountinfo: proc(5).
"""

from __future__ import annotations

import errno
import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shims.core.errors import InputError, TargetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "Cgroup",
    "Hierarchy",
    "builder_name",
    "find_hierarchies",
    "group_for",
    "machine_cgroup",
    "machine_cgroups",
    "parent_of",
    "parse_mountinfo",
]

_DEFAULT_PARENT = "/void-shims"
_CONTROLLERS = frozenset({"memory", "pids", "cpu", "io"})
"""What we limit by, or count with."""
_V1_INHERITED = ("cpuset.cpus", "cpuset.mems")
_REMOVE_ATTEMPTS = 3


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy."""

    mount: str
    version: int
    controllers: frozenset[str] = frozenset()
    """v1: the controllers mounted here. v2: empty, they are a matter of each group."""


@dataclass(frozen=True)
class Cgroup:
    """A group of the same name in several hierarchies. Nothing exists before ``create``."""

    path: str
    """From the root of each hierarchy, with a leading slash."""
    hierarchies: tuple[Hierarchy, ...]

    def create(self, memory_limit: int | None = None) -> None:
        """Create the group and the parents it lacks; may be repeated.

        ``memory_limit`` in bytes. Raises ``TargetError`` with the file that the kernel refused.
        """
        with _refusals():
            for hierarchy in self.hierarchies:
                _create(hierarchy, self.path)
        if memory_limit is not None:
            self.limit_memory(memory_limit)

    def limit_memory(self, limit: int) -> None:
        """Let the group, which exists, use ``limit`` bytes at most. Raises ``TargetError``."""
        with _refusals():
            for hierarchy in self.hierarchies:
                _limit_memory(hierarchy, self._directory(hierarchy), limit)

    def join(self) -> None:
        """Move the calling process, which has one thread, in. Raises OSError; for a forked child.

        A v1 thread that moves itself takes no lock of the whole host's; a process, even of one
        thread, does, and waits some ten milliseconds for it (cgroup_procs_write_start of the
        kernel). v2 moves threads only within a process's group.
        """
        for hierarchy in self.hierarchies:
            name = "tasks" if hierarchy.version == 1 else "cgroup.procs"
            _write(f"{self._directory(hierarchy)}/{name}", "0")

    def processes(self) -> set[int]:
        """Return the processes inside; empty when the group is gone."""
        found: set[int] = set()
        for hierarchy in self.hierarchies:
            found.update(int(pid) for pid in _read(self._directory(hierarchy), "cgroup.procs"))
        return found

    def kill(self) -> None:
        """Kill every process inside."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def oom_kills(self) -> int:
        """How often the kernel has killed here for want of memory; 0 when nobody counts."""
        for hierarchy in self.hierarchies:
            if hierarchy.version == 1 and "memory" not in hierarchy.controllers:
                continue
            name = "memory.oom_control" if hierarchy.version == 1 else "memory.events"
            words = _read(self._directory(hierarchy), name)
            if "oom_kill" in words:
                return int(words[words.index("oom_kill") + 1])
        return 0

    def remove(self) -> None:
        """Remove the group. What still holds a process stays. May be repeated.

        Never a parent, empty or not: it is an operator's or a manager's, with limits that would go
        with it; and one that ``create`` had to make is left as runc leaves it.
        """
        for hierarchy in self.hierarchies:
            _remove(self._directory(hierarchy))

    def _directory(self, hierarchy: Hierarchy) -> str:
        return hierarchy.mount + self.path


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetError(
            f"cannot prepare cgroup {error.filename}: {error.strerror}",
            hint="is this process allowed to manage cgroups?",
        ) from error


def machine_cgroup(name: str, cgroups_path: str | None) -> Cgroup | None:
    """Return the cgroup of the VM ``name`` on this host; None for users who cannot make one."""
    if os.geteuid() != 0:
        return None
    return group_for(cgroups_path, name, find_hierarchies())


def machine_cgroups(name: str, cgroups_path: str | None) -> list[Cgroup]:
    """Return every group that a start of the VM ``name`` may make, for whoever cleans up after it.

    Beside the VM's own that is the one in which a template is built, which lies below /void-shims:
    its memory outlives it, and must not be charged to the first VM's pod.
    """
    groups = (machine_cgroup(name, cgroups_path), machine_cgroup(builder_name(name), None))
    return [group for group in groups if group is not None]


def builder_name(name: str) -> str:
    """Return the name under which the VM ``name`` builds a template."""
    return f"{name}-template"


def group_for(cgroups_path: str | None, name: str, hierarchies: Iterable[Hierarchy]) -> Cgroup:
    """Return the group for the VM ``name`` of a container with this OCI ``cgroupsPath``."""
    return Cgroup(f"{parent_of(cgroups_path)}/void-{name}", tuple(hierarchies))


def parent_of(cgroups_path: str | None) -> str:
    """Return the path of the group that holds a container's group.

    ``/a/b/c`` → ``/a/b``; ``x-y.slice:p:n`` → ``/x.slice/x-y.slice``; nothing → ``/void-shims``.
    Raises ``InputError`` for paths that lead upwards and for malformed slices.
    """
    if not cgroups_path:
        return _DEFAULT_PARENT
    if cgroups_path.count(":") == 2:
        return _expand_slice(cgroups_path.partition(":")[0] or "system.slice")
    parts = [part for part in cgroups_path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InputError("linux.cgroupsPath", cgroups_path, "a path without ..")
    return "/" + "/".join(parts[:-1]) if len(parts) > 1 else _DEFAULT_PARENT


def _expand_slice(name: str) -> str:
    stem = name.removesuffix(".slice")
    pieces = stem.split("-")
    if name == stem or "/" in name or "" in pieces:
        if name == "-.slice":
            return ""
        raise InputError("linux.cgroupsPath", name, "NAME.slice:PREFIX:NAME, NAME without '/'")
    return "".join(f"/{'-'.join(pieces[: n + 1])}.slice" for n in range(len(pieces)))


def find_hierarchies(mountinfo: str = "/proc/self/mountinfo") -> list[Hierarchy]:
    """Return the cgroup hierarchies that are mounted here and of use to us, v1 before v2.

    Beside v1 hierarchies a v2 one may be mounted that has none of our controllers.
    """
    with open(mountinfo) as lines:
        found = parse_mountinfo(lines)
    alone = len(found) == 1
    return [
        hierarchy
        for hierarchy in found
        if alone or hierarchy.version == 1 or not _CONTROLLERS.isdisjoint(_offers(hierarchy))
    ]


def _offers(hierarchy: Hierarchy) -> list[str]:
    return _read(hierarchy.mount, "cgroup.controllers")


def parse_mountinfo(lines: Iterable[str]) -> list[Hierarchy]:
    """Return the hierarchies that mountinfo lists; the first mount of each counts. Pure."""
    found: dict[object, Hierarchy] = {}
    for line in lines:
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        mount = fields.split(" ")[4].replace("\\040", " ")
        if kind == "cgroup2":
            found.setdefault("v2", Hierarchy(mount, 2))
        elif kind == "cgroup":
            names = {option for option in options.strip().split(",") if option not in _MOUNT_FLAGS}
            names = {name for name in names if not name.startswith("release_agent=")}
            found.setdefault(frozenset(names), Hierarchy(mount, 1, frozenset(names)))
    return sorted(found.values(), key=lambda hierarchy: hierarchy.version)


_MOUNT_FLAGS = frozenset({"rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"})


def _create(hierarchy: Hierarchy, path: str) -> None:
    directory = hierarchy.mount
    for part in path.strip("/").split("/"):
        if hierarchy.version == 2:
            _delegate(directory)
        parent, directory = directory, f"{directory}/{part}"
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            pass
        if "cpuset" in hierarchy.controllers:
            _fill_cpuset(parent, directory)


def _fill_cpuset(parent: str, directory: str) -> None:
    """Give an empty v1 cpuset what its parent has: a new one is empty, and cannot be joined.

    One that was there already may be as new: whoever made it has not come to fill it yet.
    """
    for name in _V1_INHERITED:
        with open(f"{directory}/{name}") as own:
            if own.read().strip():
                continue
        with open(f"{parent}/{name}") as inherited:
            _write(f"{directory}/{name}", inherited.read())


def _delegate(directory: str) -> None:
    """Let groups below have what we would limit or count, as far as the kernel permits."""
    for controller in sorted(_CONTROLLERS, reverse=True):
        try:
            _write(f"{directory}/cgroup.subtree_control", f"+{controller}")
        except OSError:
            pass  # not mounted here, or processes in the way: then the group goes unlimited


def _limit_memory(hierarchy: Hierarchy, directory: str, limit: int) -> None:
    if hierarchy.version == 1 and "memory" in hierarchy.controllers:
        _write(f"{directory}/memory.limit_in_bytes", str(limit))
    elif hierarchy.version == 2 and os.path.exists(f"{directory}/memory.max"):
        _write(f"{directory}/memory.max", str(limit))


def _remove(directory: str) -> None:
    for _ in range(_REMOVE_ATTEMPTS):
        try:
            os.rmdir(directory)
        except OSError as error:
            # EBUSY right after a process's end: v1 lets go of it a moment later.
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                continue
        return


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.strip().encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def _read(directory: str, name: str) -> list[str]:
    try:
        with open(f"{directory}/{name}") as file:
            return file.read().split()
    except FileNotFoundError:
        return []
