"""The exit journal: what became of each process, where a later process can still read it.

The daemon records an exit before it tells anybody; ``delete``, run by containerd after the daemon
died, returns what stands here instead of a made-up 137.
"""

from __future__ import annotations

import os

from shims.containerd.shim import quickjson
from shims.containerd.shim.journal import Journal
from shims.containerd.shim.state import write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

__all__ = ["Exit", "ExitJournal"]


class Exit:
    """One exit: ``exec_id`` is empty for the container's first process, ``at_ns`` is wall time."""

    __slots__ = ("at_ns", "container", "exec_id", "pid", "status")

    def __init__(self, container: str, exec_id: str, pid: int, status: int, at_ns: int) -> None:
        self.container = container
        self.exec_id = exec_id
        self.pid = pid
        self.status = status
        self.at_ns = at_ns


class ExitJournal:
    """``<directory>/exits.jsonl``, append-only, each record on disk before ``record`` returns.

    Records are few and short (one line of a hundred bytes per process), and go with the directory.
    """

    def __init__(self, directory: str) -> None:
        self._journal = Journal(f"{directory}/exits.jsonl", sync=True)

    def record(self, ended: Exit) -> None:
        """Append one exit and sync it to disk."""
        self._journal.append(
            {
                "container": ended.container,
                "exec": ended.exec_id,
                "pid": ended.pid,
                "status": ended.status,
                "at_ns": ended.at_ns,
            }
        )

    def find(self, container: str, exec_id: str = "") -> Exit | None:
        """Return the last recorded exit of a process; None when it is not known to have ended."""
        found = None
        for record in self._journal.read():
            if record.get("container") == container and record.get("exec") == exec_id:
                found = _exit(record) or found
        return found

    def forget(self, container: str) -> None:
        """Drop the records of a container whose id is used anew. Nobody else may be writing."""
        lines = [
            f"{quickjson.dump_flat(record)}\n"
            for record in self._journal.read()
            if record.get("container") != container
        ]
        if lines:
            write_file(self._journal.path, "".join(lines))
        else:
            os.unlink(self._journal.path)

    def close(self) -> None:
        """Close the file. May be repeated."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _exit(record: dict[str, Any]) -> Exit | None:
    numbers = [record.get(name) for name in ("pid", "status", "at_ns")]
    if not all(isinstance(value, int) for value in numbers):
        return None
    pid, status, at_ns = numbers
    assert isinstance(pid, int)
    assert isinstance(status, int)
    assert isinstance(at_ns, int)
    return Exit(record["container"], record["exec"], pid, status, at_ns)
