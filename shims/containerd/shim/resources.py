"""What the daemon holds on the host, on disk, so that ``delete`` can release it without the daemon.

Record a thing before (or in the same step as) it comes to exist, drop it after it is gone.
"""

from __future__ import annotations

import os
import time

from shims.containerd.shim.journal import Journal
from shims.containerd.shim.processes import SIGKILL, Process, end_processes, find_process
from shims.containerd.shim.removal import remove_cgroup, remove_tree, unmount_below

__all__ = ["Resources"]

_DROP = "drop"


class Resources:
    """``<directory>/resources.jsonl``: an append-only list of things to release, in reverse."""

    def __init__(self, directory: str) -> None:
        self._journal = Journal(f"{directory}/resources.jsonl")

    def record(self, kind: str, name: str, *, started: int = 0) -> None:
        """Take note of a thing: ``kind`` is process, mount, cgroup, path or network."""
        self._journal.append({"kind": kind, "name": name, "started": started})

    def add_process(self, pid: int, role: str) -> None:
        """A process of ours (qemu, virtiofsd): killed, if it is still the same.

        ``role`` is for people who read the file.
        """
        if (process := find_process(pid)) is not None:
            name, started = str(pid), process.started
            self._journal.append(
                {"kind": "process", "name": name, "started": started, "role": role}
            )

    def drop_process(self, pid: int) -> None:
        """The process was reaped."""
        self.drop(str(pid))

    def add_mount(self, path: str) -> None:
        """A mount: unmounted, lazily if need be, with all that is mounted below."""
        self.record("mount", path)

    def add_cgroup(self, path: str) -> None:
        """A cgroup directory of ours: its processes are killed, it and its children removed."""
        self.record("cgroup", path)

    def add_path(self, path: str) -> None:
        """A socket, file or directory tree of ours: removed, without following links."""
        self.record("path", path)

    def add_network(self, path: str) -> None:
        """A network namespace that a VM takes over: given back to what CNI made in it."""
        self.record("network", path)

    def drop(self, name: str) -> None:
        """A process, mount, cgroup, path or hold on a network is gone."""
        self._journal.append({"kind": _DROP, "name": name})

    def held(self) -> list[tuple[str, str, int]]:
        """Return (kind, name, start time) of everything to release, newest first."""
        things: dict[str, tuple[str, str, int]] = {}
        for record in self._journal.read():
            kind, name = record.get("kind"), record.get("name")
            started = record.get("started", 0)
            if not (isinstance(kind, str) and isinstance(name, str) and isinstance(started, int)):
                continue
            things.pop(name, None)
            if kind != _DROP:
                things[name] = (kind, name, started)
        return list(reversed(things.values()))

    def release_all(self, deadline: float) -> list[str]:
        """Release everything, newest first; return a line for each thing that stayed.

        Processes go first, because they keep mounts and cgroups busy. ``deadline`` in
        time.monotonic(). Idempotent; may run in several processes at once.
        """
        held = self.held()
        processes = [
            Process(int(name), started)
            for kind, name, started in held
            if kind == "process" and name.isdecimal()
        ]
        left = end_processes(processes, SIGKILL, deadline)
        problems = [f"process {process.pid} does not end" for process in left]
        for kind, name, _ in held:
            if kind != "process":
                try:
                    self._release(kind, name, deadline)
                except OSError as error:
                    problems.append(f"{kind} {name}: {error.strerror}")
        return problems

    def _release(self, kind: str, name: str, deadline: float) -> None:
        if kind == "mount":
            unmount_below(name)
        elif kind == "cgroup":
            remove_cgroup(name, max(deadline, time.monotonic() + 0.1))
        elif kind == "network":
            from shims.microvm.netns import release_network

            release_network(name)
        elif kind == "path" and os.path.isabs(name):
            remove_tree(name)

    def close(self) -> None:
        """Close the file, keep the record."""
        self._journal.close()
