"""Wait for changes below a file or directory of the host, without looking again and again.

inotify(7) by way of ctypes, which is imported with the first watch: most VMs have none.
"""

from __future__ import annotations

import asyncio
import os
import struct
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Watch"]

_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_DONT_FOLLOW = 0x02000000
_IGNORED = 0x8000
_ENTRIES = _CREATE | _DELETE | _MOVED_FROM | _MOVED_TO
_CONTENT = _MODIFY | _ATTRIB | _CLOSE_WRITE
_SELF = _DELETE_SELF | _MOVE_SELF
_EVENT = struct.Struct("iIII")
_READ = 1 << 16


class Watch:
    """An inotify instance. ``changed`` is set whenever something happened; use as a context."""

    def __init__(self) -> None:
        """Open the instance. Raises ``OSError`` when the user's limit of instances is reached."""
        import ctypes

        self._errno = ctypes.get_errno
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._fd = self._call(self._libc.inotify_init1, os.O_NONBLOCK | os.O_CLOEXEC)
        self._watched: set[int] = set()
        self.changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def __enter__(self) -> Self:
        """Return the watch itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self.close()

    def follow(self, paths: Iterable[bytes], *, resolved: Iterable[bytes] = ()) -> None:
        """Watch exactly ``paths`` and ``resolved``: what stands there now.

        Of symbolic links among ``paths`` the link itself is watched, among ``resolved`` that to
        which it leads. A path that is gone is passed over: its disappearance is an event of its
        directory. Raises ``OSError`` when the user's limit of watches is reached.
        """
        current: set[int] = set()
        wanted = [(path, 0) for path in resolved] + [(path, _DONT_FOLLOW) for path in paths]
        for path, extra in wanted:
            try:
                # Adding what is watched already gives the same number; a new inode, another.
                mask = _ENTRIES | _CONTENT | _SELF | extra
                current.add(self._call(self._libc.inotify_add_watch, self._fd, path, mask))
            except FileNotFoundError:
                continue
            finally:
                self._watched |= current
        for number in self._watched - current:
            self._libc.inotify_rm_watch(self._fd, number)
        self._watched = current

    def close(self) -> None:
        """Stop watching. Repeatable."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _call(self, function: Any, *arguments: object) -> int:
        result = int(function(*arguments))
        if result < 0:
            number = self._errno()
            raise OSError(number, os.strerror(number))
        return result

    def _read(self) -> None:
        try:
            events = os.read(self._fd, _READ)
        except BlockingIOError:
            return
        at = 0
        while at < len(events):
            number, mask, _, length = _EVENT.unpack_from(events, at)
            at += _EVENT.size + length
            if mask & _IGNORED:
                self._watched.discard(number)
        self.changed.set()
