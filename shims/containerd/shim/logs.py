"""The daemon's log: the bundle's fifo, which containerd copies to its own log, and a bounded file.

The fifo is written without blocking and drops when nobody reads: a stuck containerd must not stop
containers. The file outlives the bundle, and SIGUSR1 dumps stacks and state there. Lines have the
form that containerd's own lines have.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import io
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DaemonLog"]

LARGEST_FILE = 1 << 20
_STDERR = 2
_LEVELS = {logging.WARNING: "warning", logging.CRITICAL: "fatal"}


class DaemonLog(logging.Handler):
    """Both outputs of the logging module's root logger. ``with DaemonLog(...) as log``.

    The file keeps at most ``LARGEST_FILE`` bytes, and as many again in ``PATH.1``. Standard error
    points at it too, so that what C libraries print is found in the same place.
    """

    def __init__(self, path: str, *, debug: bool) -> None:
        """``path`` of the file; its directory is made."""
        super().__init__(logging.DEBUG if debug else logging.INFO)
        self.path = path
        self._fifos: dict[str, int] = {}
        self._file = -1
        self._lost = 0
        self._dumps = False
        self._root_level = logging.NOTSET
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self.setFormatter(_Formatter())

    def __enter__(self) -> Self:
        self._open()
        root = logging.getLogger()
        self._root_level = root.level
        root.setLevel(self.level)
        root.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        root = logging.getLogger()
        root.removeHandler(self)
        root.setLevel(self._root_level)
        self.close()

    def close(self) -> None:
        """Close every output. May be repeated."""
        for path in tuple(self._fifos):
            self.remove_fifo(path)
        if self._file >= 0:
            if self._dumps:
                faulthandler.unregister(signal.SIGUSR1)
            os.close(self._file)
            self._file = -1
        super().close()

    def add_fifo(self, path: str) -> None:
        """Also write to this fifo (``<bundle>/log``); a missing one is ignored."""
        if path in self._fifos:
            return
        # Read and write: opening does not wait for a reader, and a reader that goes away does not
        # end us with a signal.
        with contextlib.suppress(OSError):
            self._fifos[path] = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def remove_fifo(self, path: str) -> None:
        """Stop writing to a fifo: its bundle goes away. May be repeated."""
        if (fd := self._fifos.pop(path, None)) is not None:
            os.close(fd)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record to all outputs."""
        try:
            data = (self.format(record) + "\n").encode(errors="replace")
        except (TypeError, ValueError):  # a bad format string in the caller
            self.handleError(record)
            return
        self._write_file(data)
        for fd in self._fifos.values():
            try:
                os.write(fd, data)
            except OSError:
                self._lost += 1

    def dump_on_signal(self, loop: asyncio.AbstractEventLoop, describe: Callable[[], str]) -> None:
        """On SIGUSR1 write all stacks, all tasks and ``describe()`` to the file.

        The stacks come even when the loop hangs; tasks and description when it gets to them.
        """
        loop.add_signal_handler(signal.SIGUSR1, self._dump, describe)
        self._dumps = True
        self._arm()

    def _arm(self) -> None:
        # Chained: the C handler writes the stacks at once, then Python's wakes the loop.
        if self._dumps:
            faulthandler.register(signal.SIGUSR1, file=self._file, all_threads=True, chain=True)

    def dump(self, describe: Callable[[], str]) -> str:
        """Return the text of a dump: ``describe()`` and where each task of the loop stands."""
        try:
            state = describe()
        except Exception as error:  # a dump is taken when something is wrong already
            state = f"no description: {type(error).__name__}: {error}"
        out = io.StringIO()
        out.write(f"--- state at {_timestamp(time.time())}\n{state}\n--- tasks\n")
        for task in sorted(asyncio.all_tasks(), key=asyncio.Task.get_name):
            task.print_stack(file=out)
        out.write(f"--- end; {self._lost} lines not written to the log fifo\n")
        return out.getvalue()

    def _dump(self, describe: Callable[[], str]) -> None:
        self._write_file(self.dump(describe).encode(errors="replace"))

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self.path, flags, 0o600)

    def _write_file(self, data: bytes) -> None:
        if self._file < 0:
            return
        try:
            # Asked for each time: standard error appends to the same file.
            if os.fstat(self._file).st_size + len(data) > LARGEST_FILE:
                self._rotate()
            os.write(self._file, data)
        except OSError:  # a full disk must not stop containers
            self._lost += 1

    def _rotate(self) -> None:
        # A file that somebody removed is no reason to lose what comes next.
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, f"{self.path}.1")
        old = self._file
        follows = _is_same_file(_STDERR, old)
        self._open()
        self._arm()
        os.close(old)
        if follows:
            os.dup2(self._file, _STDERR)


class _Formatter(logging.Formatter):
    """``time="..." level=info msg="..."``, as containerd writes it; one line per record."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        level = _LEVELS.get(record.levelno, record.levelname.lower())
        return (
            f'time="{_timestamp(record.created)}" level={level} '
            f"msg={_quoted(message)} logger={record.name}"
        )


def _quoted(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n").replace("\r", "\\r") + '"'


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1_000_000):06d}Z"


def _is_same_file(fd: int, other: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.fstat(other))
    except OSError:
        return False
