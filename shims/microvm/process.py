"""A child process as the event loop sees it."""

from __future__ import annotations

import asyncio
import os
import signal

from shims.core.errors import TargetError

__all__ = ["Process"]


class Process:
    """A running child: its exit as a future, signals without the danger of a recycled pid."""

    def __init__(self, pid: int, failures: int) -> None:
        """Watch the child ``pid``; ``failures`` is the pipe in which it says why it did not run.

        Raises ``TargetError`` when it cannot be watched; then it is gone, and the pipe closed.
        """
        self.pid = pid
        self.failure = ""
        """Why the program never ran; known once ``exited`` is done."""
        self._failures = failures
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.close(failures)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TargetError(f"cannot watch process {pid}: {error.strerror}") from error
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        """Exit code, negative for a signal, as of ``os.waitstatus_to_exitcode``."""
        self._loop.add_reader(self._pidfd, self._collect)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens when the process is gone."""
        if not self.exited.done():
            signal.pidfd_send_signal(self._pidfd, number)

    async def end(self, timeout: float) -> int:
        """Kill the process unless it is gone, and wait until it is; return its exit code."""
        self.kill()
        return await asyncio.wait_for(asyncio.shield(self.exited), timeout)

    def _collect(self) -> None:
        self._loop.remove_reader(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        try:
            self.failure = os.read(self._failures, 4096).decode(errors="replace")
        except BlockingIOError:
            pass  # somebody forked while the pipe was open, and holds it
        os.close(self._failures)
        if not self.exited.done():
            self.exited.set_result(os.waitstatus_to_exitcode(status))
