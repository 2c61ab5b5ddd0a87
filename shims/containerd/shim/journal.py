"""Append-only files of JSON lines, which survive their writer at any point.

One record is one write to a file opened for appending, so records of several processes do not mix,
and a line that a crash cut off is skipped when reading.
"""

from __future__ import annotations

import os

from shims.containerd.shim import quickjson

__all__ = ["Journal"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any


class Journal:
    """A file of records; made with mode 0600 on the first append."""

    def __init__(self, path: str, *, sync: bool = False) -> None:
        """``sync``: each record is on the disk before ``append`` returns."""
        self.path = path
        self._sync = sync
        self._fd = -1

    def append(self, fields: Mapping[str, str | int]) -> None:
        """Write one record; raise OSError when the disk refuses."""
        if self._fd < 0:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path, flags, 0o600)
            self._end_cut_line()
        os.write(self._fd, quickjson.dump_flat(fields).encode() + b"\n")
        if self._sync:
            os.fdatasync(self._fd)

    def _end_cut_line(self) -> None:
        """Start on a new line even when an earlier writer died in the middle of one."""
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the records, oldest first; nothing when there is no file."""
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                lines = file.read().split("\n")
        except FileNotFoundError:
            return
        for line in lines:
            try:
                record = quickjson.load(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record

    def close(self) -> None:
        """Close the file. May be repeated; a later append opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
