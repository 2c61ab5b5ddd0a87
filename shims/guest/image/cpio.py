"""Write an initramfs: the "newc" form of cpio, as Linux unpacks it.

The format is Documentation/driver-api/early-userspace/buffer-format.rst of Linux. The same entries
give the same bytes everywhere: they are sorted, times are 0, owners root, inodes counted. Nothing
is compressed, because a guest under TCG unpacks slower than the host reads.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Entry", "write_cpio"]

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_BLOCK = 512


@dataclass(frozen=True)
class Entry:
    """One file of the archive: absolute path, mode with type, content, and a device's numbers."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def directory(cls, path: str) -> Entry:
        """Return a directory that everybody may read."""
        return cls(path, stat.S_IFDIR | 0o755)

    @classmethod
    def file(cls, path: str, content: bytes, *, executable: bool = False) -> Entry:
        """Return a regular file."""
        return cls(path, stat.S_IFREG | (0o755 if executable else 0o644), content)


def write_cpio(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield the archive of ``entries`` piece by piece; parents are added where they are missing."""
    known = {entry.path: entry for entry in entries}
    for path in list(known):
        parent = os.path.dirname(path)
        while parent != "/":
            known.setdefault(parent, Entry.directory(parent))
            parent = os.path.dirname(parent)
    written = 0
    # Sorted by components, so that a directory comes before everything that it holds.
    ordered = sorted(known.values(), key=lambda entry: entry.path.split("/"))
    for inode, entry in enumerate(ordered, start=1):
        for piece in _record(entry, inode):
            written += len(piece)
            yield piece
    for piece in _record(Entry("/" + _TRAILER, 0), 0):
        written += len(piece)
        yield piece
    yield bytes(-written % _BLOCK)


def _record(entry: Entry, inode: int) -> Iterator[bytes]:
    name = entry.path.lstrip("/").encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.content))
    numbers = (*fields, 0, 0, major, minor, len(name), 0)
    header = _MAGIC.encode() + b"".join(b"%08X" % number for number in numbers) + name
    yield header + bytes(-len(header) % 4)
    if entry.content:
        yield entry.content
        yield bytes(-len(entry.content) % 4)
