"""Count what a test leaves behind: take a snapshot before, one after, and compare.

Only what can be ours is looked at, because other tests may run on the same host: descendants of
one reaper, paths below given directories, cgroups of one containerd namespace, and the network
namespaces that a test made for its containers.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from shims.microvm.netns import TAP_NAME
from tests.e2e.reaper import descendants_of, mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "Scope",
    "Snapshot",
    "assert_clean",
    "matching",
    "remove_cgroups",
    "take_snapshot",
]

_LOOK_AGAIN = 0.1
# Descriptors of a daemon that come and go with its own work (timers, its database, a client).
_FD_NOISE = 4
# A nursery that was still starting when it was looked at had not opened its spare's door.
_LASTING_NOISE = 1
_NETNS = Path("/run/netns")


@dataclass(frozen=True)
class Scope:
    """Where to look."""

    reaper: int  # the ancestor of everything that was started
    daemons: frozenset[int]  # processes that are meant to live: their descriptors are counted
    namespace: str  # containerd's, which names cgroups
    directories: tuple[Path, ...]  # mounts, sockets and files below them are ours
    kept: tuple[Path, ...] = ()  # caches, logs and locks: these, and what is below them, may stay
    standing: tuple[Path, ...] = ()  # directories that may stay, but nothing in them
    networks: tuple[str, ...] = ()  # network namespaces that only our containers' VMs join
    # A process with such a word in its command line may stay, with the descriptors that it had.
    lasting: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """What there is, each thing by a name that says what it is."""

    processes: frozenset[str] = field(default_factory=frozenset)
    mounts: frozenset[str] = field(default_factory=frozenset)
    sockets: frozenset[str] = field(default_factory=frozenset)
    networks: frozenset[str] = field(default_factory=frozenset)
    cgroups: frozenset[str] = field(default_factory=frozenset)
    files: frozenset[str] = field(default_factory=frozenset)
    fds: dict[int, int] = field(default_factory=dict)
    lasting_fds: dict[int, int] = field(default_factory=dict)

    def beyond(self, baseline: Snapshot) -> list[str]:
        """Return what is here and was not in ``baseline``, a line each."""
        found = [
            f"{item.name}: {name}"
            for item in fields(self)
            if item.name not in ("fds", "lasting_fds")
            for name in sorted(getattr(self, item.name) - getattr(baseline, item.name))
        ]
        for now, then, noise in (
            (self.fds, baseline.fds, _FD_NOISE),
            (self.lasting_fds, baseline.lasting_fds, _LASTING_NOISE),
        ):
            for pid, count in now.items():
                before = then.get(pid, count)
                if count > before + noise:
                    found.append(f"fds: process {pid} has {count}, had {before}")
        return found


def take_snapshot(scope: Scope) -> Snapshot:
    """Look at everything once."""
    return Snapshot(
        processes=frozenset(_processes(scope)),
        mounts=frozenset(
            point for directory in scope.directories for point in mounts_below(str(directory))
        ),
        sockets=frozenset(_sockets(scope)),
        networks=frozenset(left for name in scope.networks for left in _in_network(name)),
        cgroups=frozenset(_cgroups(scope.namespace)),
        files=frozenset(_files(scope)),
        fds={pid: _descriptors(pid) for pid in scope.daemons},
        lasting_fds={pid: _descriptors(pid) for pid in _lasting(scope)},
    )


def assert_clean(scope: Scope, baseline: Snapshot, *, within: float = 10.0) -> None:
    """Raise ``AssertionError`` unless everything beyond ``baseline`` goes within some seconds."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while left := take_snapshot(scope).beyond(baseline):
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind after {within:.0f} s:\n  " + "\n  ".join(left))
        pause.wait(_LOOK_AGAIN)


def command_line(pid: int) -> str:
    """Return a process's argument list joined by spaces, empty for a zombie or a dead one."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def _processes(scope: Scope) -> Iterator[str]:
    for pid in descendants_of(scope.reaper):
        line = command_line(pid)
        # A zombie waits for nothing but the reaper's next look.
        if not line or pid in scope.daemons or any(word in line for word in scope.lasting):
            continue
        yield f"{pid} {line[:160]}"


def _lasting(scope: Scope) -> Iterator[int]:
    for pid in descendants_of(scope.reaper):
        if any(word in command_line(pid) for word in scope.lasting):
            yield pid


def _in_network(name: str) -> Iterator[str]:
    """Tell what a VM brought into a network namespace: its tap, and the redirect to it."""
    if not (_NETNS / name).exists():
        return
    for words, ours in ((("ip", "-n", name, "-o", "link"), TAP_NAME),
                        (("tc", "-n", name, "qdisc"), "ingress")):  # fmt: skip
        listed = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
        yield from (f"{name}: {line[:60]}" for line in listed.stdout.splitlines() if ours in line)


def _sockets(scope: Scope) -> Iterator[str]:
    with open("/proc/net/unix") as handle:
        for line in handle:
            path = line.split(None, 7)[7].strip() if line.count(" ") > 6 and "/" in line else ""
            if any(path.startswith(f"{directory}/") for directory in scope.directories) and not any(
                path.startswith(str(place)) for place in scope.kept
            ):
                yield path


def _cgroups(namespace: str) -> Iterator[str]:
    for point in _cgroup_roots():
        for name, _, _ in os.walk(point):
            if is_cgroup_of(namespace, name[len(point) :]):
                yield name


def is_cgroup_of(namespace: str, path: str) -> bool:
    """Whether a container, its VM or a template that was built for it has this cgroup.

    The namespace's own directory, which runc makes and leaves, does not count; see remove_cgroups.
    """
    return f"/{namespace}/" in path or f"/void-{namespace}-" in path


def remove_cgroups(namespace: str) -> None:
    """Remove the cgroups of a containerd namespace whose processes are gone, deepest first."""
    for point in _cgroup_roots():
        for name, _, _ in os.walk(os.path.join(point, namespace), topdown=False):
            try:
                os.rmdir(name)
            except OSError:
                continue  # something lives in it, which the test has reported already


def _cgroup_roots() -> list[str]:
    with open("/proc/self/mountinfo") as handle:
        return [line.split()[4] for line in handle if line.partition(" - ")[2].startswith("cgroup")]


def _files(scope: Scope) -> Iterator[str]:
    kept = {str(path) for path in scope.kept}
    standing = {str(path) for path in scope.standing}
    for directory in scope.directories:
        for parent, names, files in os.walk(directory):
            paths = [os.path.join(parent, name) for name in [*names, *files]]
            yield from (path for path in paths if path not in kept and path not in standing)
            names[:] = [name for name in names if os.path.join(parent, name) not in kept]
    for cache in scope.kept:
        # What somebody began to write into a cache and did not finish is no content of it.
        yield from (str(path) for path in cache.rglob("*") if is_unfinished(path.name))


def is_unfinished(name: str) -> bool:
    """Whether a file in a cache was never published: its builder renames or unlinks it."""
    return name.endswith((".part", ".tmp"))


def _descriptors(pid: int) -> int:
    """Count open files; not memory, which a keeper of templates holds more of with each kind."""
    found = 0
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                found += not os.readlink(f"/proc/{pid}/fd/{name}").startswith("/memfd:")
            except FileNotFoundError:
                continue  # closed while we looked
    except OSError:
        return 0
    return found


def matching(pids: Iterable[int], *words: str) -> list[int]:
    """Return those processes whose command line has all of ``words``."""
    lines = {pid: command_line(pid) for pid in pids}
    return [pid for pid, line in lines.items() if all(word in line for word in words)]
