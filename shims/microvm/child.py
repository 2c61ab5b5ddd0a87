"""A helper process of ours: its answer, its last words, its end.

asyncio's own subprocesses keep a thread each in Python 3.11 just to wait; a pidfd needs none, and
cannot hit a stranger who got the same number.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

__all__ = ["Child"]

log = logging.getLogger("shims.microvm")

_MOST_KEPT = 1 << 16
_READ = 1 << 14
_END_TIMEOUT = 5.0
"""Seconds until a killed process must be gone."""


class Child:
    """A running process in a process group of its own. Its owner calls ``end``."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int]
    ) -> None:
        """Start ``argv`` with stdin from /dev/null; call from the thread that runs the event loop.

        ``pass_fds`` keep their numbers. Raises ``OSError`` when the program cannot be run.
        """
        loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(
            argv, env=env, pass_fds=pass_fds, process_group=0, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.pid = self._process.pid
        self._name = argv[0]
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            with self._process:  # which closes its pipes and reaps it
                self._process.kill()
            raise
        self.exited: asyncio.Future[int] = loop.create_future()
        """Exit code, negative for a signal."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._answer = _Pipe(self._process.stdout)
        self._errors = _Pipe(self._process.stderr)
        loop.add_reader(self._pidfd, self._collect)

    async def answer(self) -> bytes:
        """Return the first line of stdout; empty when the process closes it without one."""
        return await self._answer.line()

    def said(self) -> str:
        """Return the end of what the process wrote to stderr so far."""
        self._errors.read()
        return self._errors.kept.decode(errors="replace").strip()

    async def end(self) -> int | None:
        """Kill the process and its group unless it is gone; return its exit code. Repeatable.

        None for a process that sleeps where not even SIGKILL reaches it, on a disk that does not
        answer, say. That is logged; it is reaped when it dies after all.
        """
        if not self.exited.done():
            self._kill_group()
            await asyncio.wait([self.exited], timeout=_END_TIMEOUT)
        if not self.exited.done():
            log.error("%s (process %d) does not die", self._name, self.pid)
            return None
        return self.exited.result()

    def _kill_group(self) -> None:
        """Call before the leader is reaped: then the number of its group is free."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _collect(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._kill_group()  # what the process leaves of it must not live on
        code = self._process.wait()
        for pipe in (self._answer, self._errors):
            pipe.read()
            pipe.close()
        if not self.exited.done():
            self.exited.set_result(code)


class _Pipe:
    """The last bytes that came out of a pipe."""

    def __init__(self, file: IO[bytes]) -> None:
        with file:
            self._fd = os.dup(file.fileno())
        self.kept = bytearray()
        self._open = True
        self._changed = asyncio.Event()
        os.set_blocking(self._fd, False)
        asyncio.get_running_loop().add_reader(self._fd, self.read)

    async def line(self) -> bytes:
        """Return the first line, without waiting for more; or what there is at the end."""
        while self._open and b"\n" not in self.kept:
            self._changed.clear()
            await self._changed.wait()
        return bytes(self.kept.partition(b"\n")[0])

    def read(self) -> None:
        """Take what is there; called by the event loop."""
        while self._open:
            try:
                piece = os.read(self._fd, _READ)
            except BlockingIOError:
                break
            if not piece:
                self.close()
                break
            self.kept += piece
            del self.kept[:-_MOST_KEPT]
        self._changed.set()

    def close(self) -> None:
        """Stop listening. Repeatable."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._changed.set()
