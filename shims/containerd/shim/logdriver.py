"""Log drivers: the program of a ``binary://`` URI, which reads a container's output from pipes.

It gets stdout on fd 3, stderr on fd 4, and tells on fd 5 that it is ready: by closing it
(``binary``) or by writing one byte (``binary-v2``). Source: containerd
``cmd/containerd-shim-runc-v2/process/io_util.go`` and ``core/runtime/v2/logging``.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from shims.containerd.shim.stdio import LogDriverFailed

__all__ = ["LogDriver", "start_log_driver"]

_READY_TIMEOUT = 10.0
_LINGER = 1.0
"""Seconds a driver has to end by itself after its pipes ended, before it is told to."""
_TERM_TIMEOUT = 5.0


@dataclass
class LogDriver:
    """A running driver; ``stdout`` and ``stderr`` are our ends, owned by whoever takes them."""

    pid: int
    stdout: int
    stderr: int
    _pidfd: int
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def close(self) -> None:
        """Wait for its end, then ask with SIGTERM, then insist with SIGKILL; never longer."""
        for timeout, number in (
            (_LINGER, signal.SIGTERM),
            (_TERM_TIMEOUT, signal.SIGKILL),
            (_TERM_TIMEOUT, None),
        ):
            try:
                await asyncio.wait_for(self._ended.wait(), timeout)
                return
            except TimeoutError:
                if number is not None and not self._ended.is_set():
                    signal.pidfd_send_signal(self._pidfd, number)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.waitpid(self.pid, 0)  # readable pidfd: it has ended, this does not wait
        os.close(self._pidfd)
        self._ended.set()


async def start_log_driver(
    uri_rest: str, container_id: str, namespace: str, *, one_byte_ready: bool
) -> LogDriver:
    """Start the program of ``binary://uri_rest`` and wait until it is ready.

    The query of the URI becomes arguments, name and value in turn. Raises ``LogDriverFailed`` when
    it does not start, or is not ready within ten seconds.
    """
    path, _, query = uri_rest.partition("?")
    argv = [unquote(path)]
    for name, value in parse_qsl(query, keep_blank_values=True):
        argv += [name, value]
    with ExitStack() as on_failure, ExitStack() as childs:
        out_read, out_write = _pipe(childs, on_failure)
        err_read, err_write = _pipe(childs, on_failure)
        ready_write, ready_read = reversed(os.pipe2(os.O_CLOEXEC))
        on_failure.callback(os.close, ready_read)
        childs.callback(os.close, ready_write)
        environ = dict(os.environ, CONTAINER_ID=container_id, CONTAINER_NAMESPACE=namespace)
        pid = _spawn(argv, environ, (out_read, err_read, ready_write), childs)
        driver = LogDriver(pid, out_write, err_write, os.pidfd_open(pid))
        asyncio.get_running_loop().add_reader(driver._pidfd, driver._reap)
        childs.close()
        try:
            await _wait_ready(ready_read, argv[0], one_byte_ready)
        except BaseException:
            on_failure.close()  # its pipes end first, so that it may go by itself
            await driver.close()
            raise
        on_failure.pop_all()
        os.close(ready_read)
        return driver


def _pipe(childs: ExitStack, ours: ExitStack) -> tuple[int, int]:
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write, False)
    childs.callback(os.close, read)
    ours.callback(os.close, write)
    return read, write


def _spawn(argv: list[str], environ: dict[str, str], fds: tuple[int, ...], stack: ExitStack) -> int:
    actions: list[tuple[int, int, int]] = []
    for target, fd in enumerate(fds, start=3):
        # Moved out of the way first: fd itself may be 3, 4 or 5, and would be overwritten.
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
        stack.callback(os.close, high)
        actions.append((os.POSIX_SPAWN_DUP2, high, target))
    try:
        return os.posix_spawn(
            argv[0], argv, environ, file_actions=actions, setsigdef=(signal.SIGPIPE,), setsid=True
        )
    except OSError as error:
        raise LogDriverFailed(f"log driver {argv[0]}: {error.strerror}") from error


async def _wait_ready(fd: int, name: str, one_byte: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), _READY_TIMEOUT)
        if not os.read(fd, 1) and one_byte:
            raise LogDriverFailed(f"log driver {name} ended before it was ready")
    except TimeoutError as error:
        raise LogDriverFailed(
            f"log driver {name} was not ready within {_READY_TIMEOUT:g} s"
        ) from error
    finally:
        loop.remove_reader(fd)
