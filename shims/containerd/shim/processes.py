"""Other processes, named so that a reused pid is never taken for the one we knew."""

from __future__ import annotations

import os
import time

# The public module imports enum, which takes longer than everything else here.
from _signal import SIGKILL, SIGTERM, pidfd_send_signal  # type: ignore[import-not-found]

__all__ = ["SIGKILL", "SIGTERM", "Process", "end_processes", "find_process", "start_time"]

_STATE, _THREADS, _START_TIME = 0, 17, 19
"""Indexes of fields 3, 20 and 22 of /proc/PID/stat among the fields after the name."""


class Process:
    """A pid and the start time that makes it unique since boot."""

    __slots__ = ("pid", "started")

    def __init__(self, pid: int, started: int) -> None:
        self.pid = pid
        self.started = started

    def is_alive(self) -> bool:
        """Return whether exactly this process still runs; a zombie does not."""
        return start_time(self.pid) == self.started

    def open(self) -> int | None:
        """Return a pidfd of exactly this process; None when it has gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:  # ESRCH: gone; EINVAL: the number belongs to a thread by now
            return None
        # The number may have been reused before the open, but not after it.
        if self.is_alive():
            return fd
        os.close(fd)
        return None


def find_process(pid: int) -> Process | None:
    """Return the running process with this pid."""
    started = start_time(pid)
    return None if started is None else Process(pid, started)


def start_time(pid: int) -> int | None:
    """Return the start time of a running process, in ticks since boot; None without one."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return None
    fields = stat[stat.rfind(b")") + 2 :].split()
    if len(fields) <= _START_TIME:
        return None
    # A zombie whose other threads still end (QEMU's, giving memory back) is not gone: it keeps its
    # cgroup and its files busy.
    if fields[_STATE] in (b"Z", b"X") and int(fields[_THREADS]) <= 1:
        return None
    return int(fields[_START_TIME])


def end_processes(processes: list[Process], number: int, deadline: float) -> list[Process]:
    """Send a signal and wait for the ends; return those that still run at the deadline.

    ``deadline`` in time.monotonic().
    """
    import select

    poll = select.poll()
    waiting: dict[int, Process] = {}
    try:
        for process in processes:
            fd = process.open()
            if fd is not None:
                waiting[fd] = process
                poll.register(fd, select.POLLIN)
                _send(fd, number)
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
                del waiting[fd]
                os.close(fd)
        return [process for process in waiting.values() if process.is_alive()]
    finally:
        for fd in waiting:
            os.close(fd)


def _send(pidfd: int, number: int) -> None:
    try:
        pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
