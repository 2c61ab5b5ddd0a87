"""The last words of a VM: its serial console and QEMU's own messages, bounded.

Everything is drained as it comes, so neither the guest nor QEMU ever waits for us, and only the
end is kept: that is what one wants to read when a VM has died.
"""

from __future__ import annotations

import asyncio
import os
import re

__all__ = ["Console"]

_KEPT_BYTES = 64 * 1024
_READ_SIZE = 16 * 1024
_LONGEST_LINE = 500
_UNPRINTABLE = (
    r"(?:\x1b\[|\x9b)[0-9;?]*[A-Za-z]"  # what moves a terminal's cursor or paints
    r"|[^\t\x20-\x7e\xa0-\U0010ffff]"  # control characters of both sets
    r"|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"  # what turns text around, or ends a line
)


class Console:
    """Drains descriptors into a bounded record. Owns them; must be closed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._kept = bytearray()
        self._sources: set[int] = set()

    def add(self, fd: int) -> None:
        """Take over ``fd`` (readable) and drain it until its end."""
        os.set_blocking(fd, False)
        self._sources.add(fd)
        self._loop.add_reader(fd, self._drain, fd)

    def drain(self) -> None:
        """Take what has arrived until now, without waiting."""
        for fd in list(self._sources):
            while fd in self._sources and self._drain(fd):
                pass

    def tail(self, lines: int = 30) -> list[str]:
        """Return the last lines, without control characters and without empty lines.

        None is longer than 500 characters: one of them becomes the detail of an error.
        """
        text = self._kept.decode(errors="replace")
        cleaned = (re.sub(_UNPRINTABLE, "", line).rstrip() for line in text.split("\n"))
        return [line[:_LONGEST_LINE] for line in cleaned if line][-lines:]

    def close(self) -> None:
        """Let go of the descriptors; the record stays readable. May be repeated."""
        for fd in list(self._sources):
            self._forget(fd)

    def _drain(self, fd: int) -> bool:
        try:
            data = os.read(fd, _READ_SIZE)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            self._forget(fd)
            return False
        self._kept += data
        if len(self._kept) > _KEPT_BYTES:
            del self._kept[: len(self._kept) - _KEPT_BYTES]
        return True

    def _forget(self, fd: int) -> None:
        self._sources.discard(fd)
        self._loop.remove_reader(fd)
        os.close(fd)
