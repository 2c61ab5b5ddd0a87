"""The host's ends of a process's streams: fifo, file, binary (a log driver) and nothing.

containerd names them by URI; one without a scheme is a fifo. The rules that matter:

* A fifo for output is opened twice, for reading as well, so that neither a reader that left nor a
  restart of containerd breaks the pipe, and so that opening never waits for a peer.
* A fifo for input is opened read-write for the same reason: a client that detaches is not the end
  of input. Only CloseIO is (``copying.py``).
* Nothing here blocks the event loop: fifos are non-blocking, files are written in a thread.

Source: containerd ``cmd/containerd-shim-runc-v2/process/io.go`` and ``core/runtime/v2/README.md``.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from shims.core.errors import InputError, ShimError

if TYPE_CHECKING:
    from shims.containerd.shim.process import StdioUris

__all__ = ["Endpoints", "PipeSink", "Sink", "Source", "open_endpoints", "widen_pipe"]

_SCHEMES = "a fifo's path, fifo://, file://, binary:// or binary-v2://"
_PIPE_SIZE = 1 << 20
"""What a pipe may buffer. The default of 64 KiB costs a wake-up of the reader per 64 KiB."""


class Sink(Protocol):
    """Where output goes."""

    async def write(self, data: bytes) -> None:
        """Return when all of ``data`` was taken. Data for a peer that is gone is dropped."""

    async def close(self) -> None:
        """Let go of it; the peer sees the end. May be repeated."""


class PipeSink:
    """A non-blocking pipe or fifo. ``keep`` are fds that only have to stay open as long."""

    def __init__(self, fd: int, *keep: int) -> None:
        self._fd = fd
        self._keep = keep
        self._broken = False
        widen_pipe(fd)

    async def write(self, data: bytes) -> None:
        """Write all of ``data``, waiting while the pipe is full."""
        view = memoryview(data)
        while view and not self._broken and self._fd >= 0:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await wait_writable(self._fd)
            except BrokenPipeError:
                # A log driver that died. Its container must go on, as it does under runc.
                self._broken = True

    async def close(self) -> None:
        """Close every fd."""
        fds, self._fd, self._keep = (self._fd, *self._keep), -1, ()
        for fd in fds:
            if fd >= 0:
                os.close(fd)


class FileSink:
    """A regular file, appended to. Two streams may share one: one file description, two fds."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._writing: asyncio.Future[None] | None = None

    def share(self) -> FileSink:
        """Return a sink for one more stream, with a life of its own."""
        return FileSink(os.dup(self._fd))

    async def write(self, data: bytes) -> None:
        """Append ``data``, in a thread: a file may live on a disk or server that hangs."""
        if self._fd < 0:
            return
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, _write_all, self._fd, data)
        # The thread does not stop when we are cancelled, so its future must tell when it has.
        await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Close it, or have it closed by the write that a cancelled writer left. May be repeated.

        Not waited for: that may hang, and until it is done nobody else may get the descriptor's
        number.
        """
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._writing is None or self._writing.done():
            os.close(fd)
        else:
            self._writing.add_done_callback(lambda done: _close_after(done, fd))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _close_after(done: asyncio.Future[None], fd: int) -> None:
    done.cancelled() or done.exception()  # nobody is left to hear of it
    os.close(fd)


class Source:
    """Where input comes from: a fifo that never ends by itself, or a file that does."""

    def __init__(self, fd: int, *, endless: bool) -> None:
        self._fd = fd
        self.endless = endless
        if endless:
            widen_pipe(fd)

    def read(self, limit: int) -> bytes | None:
        """Return what is there now, ``b""`` at the end of a file, None when nothing is there."""
        if self._fd < 0:
            return b""
        try:
            return os.read(self._fd, limit)
        except BlockingIOError:
            return None

    def watch(self, ready: asyncio.Event) -> None:
        """Set ``ready`` once there is something to read."""
        loop = asyncio.get_running_loop()

        def on_readable() -> None:
            loop.remove_reader(self._fd)
            ready.set()

        loop.add_reader(self._fd, on_readable)

    async def close(self) -> None:
        """Close it: a client that writes learns that nobody reads. May be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)


@dataclass
class Endpoints:
    """The open ends of one process; None where the process gets ``/dev/null``."""

    stdin: Source | None = None
    stdout: Sink | None = None
    stderr: Sink | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def close(self) -> None:
        """Close all of them. May be repeated."""
        await self._stack.aclose()


async def open_endpoints(uris: StdioUris, container_id: str, namespace: str) -> Endpoints:
    """Open what ``uris`` name. Raises ``InputError`` naming the stream that cannot be opened.

    ``container_id`` and ``namespace`` are told to a log driver.
    """
    async with AsyncExitStack() as stack:
        ends = Endpoints(_stack=stack)
        if uris.stdin:
            ends.stdin = _open_source(uris.stdin)
            stack.push_async_callback(ends.stdin.close)
        scheme = _split(uris.stdout)[0] if uris.stdout else ""
        if scheme.startswith("binary"):
            await _open_log_driver(ends, stack, uris, container_id, namespace)
        else:
            if uris.stdout:
                ends.stdout = _open_sink("stdout", uris.stdout)
                stack.push_async_callback(ends.stdout.close)
            if uris.stderr and not uris.terminal:
                ends.stderr = _open_stderr(uris, ends.stdout)
                stack.push_async_callback(ends.stderr.close)
        ends._stack = stack.pop_all()
        return ends


async def _open_log_driver(
    ends: Endpoints, stack: AsyncExitStack, uris: StdioUris, container_id: str, namespace: str
) -> None:
    from shims.containerd.shim.logdriver import start_log_driver  # few containers have one

    scheme, rest = _split(uris.stdout)
    driver = await start_log_driver(
        rest, container_id, namespace, one_byte_ready=scheme == "binary-v2"
    )
    stack.push_async_callback(driver.close)
    ends.stdout = PipeSink(driver.stdout)
    stack.push_async_callback(ends.stdout.close)
    sink = PipeSink(driver.stderr)
    stack.push_async_callback(sink.close)
    if uris.stderr and not uris.terminal:
        ends.stderr = sink


def _open_stderr(uris: StdioUris, stdout: Sink | None) -> Sink:
    if uris.stderr == uris.stdout and isinstance(stdout, FileSink):
        return stdout.share()
    return _open_sink("stderr", uris.stderr)


def _split(uri: str) -> tuple[str, str]:
    """Return scheme and rest; a bare path is a fifo."""
    scheme, mark, rest = uri.partition("://")
    return (scheme, rest) if mark else ("fifo", uri)


def _open_sink(name: str, uri: str) -> Sink:
    scheme, path = _split(uri)
    try:
        if scheme == "file":
            return _open_log_file(_url_path(path))
        if scheme == "fifo":
            return _open_output(path)
    except OSError as error:
        raise InputError(name, uri, f"an output that opens ({error.strerror})") from error
    raise InputError(name, uri, _SCHEMES)


def _url_path(rest: str) -> str:
    """Return the file that a ``file://`` URI means; ``rest`` is what follows those."""
    from urllib.parse import unquote  # most containers have fifos

    return unquote(rest.partition("#")[0].partition("?")[0])


def _open_log_file(path: str) -> FileSink:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return FileSink(os.open(path, flags, 0o644))


def _open_output(path: str) -> Sink:
    if not stat.S_ISFIFO(os.stat(path).st_mode):  # some clients hand in a file or /dev/null
        return FileSink(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
    # The order matters: with our own reader there, opening for writing succeeds at once.
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        os.close(reader)
        raise
    return PipeSink(writer, reader)


def _open_source(uri: str) -> Source:
    scheme, path = _split(uri)
    if scheme != "fifo":
        raise InputError("stdin", uri, "a fifo's path")
    try:
        is_fifo = stat.S_ISFIFO(os.stat(path).st_mode)
        mode = os.O_RDWR if is_fifo else os.O_RDONLY
        return Source(os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC), endless=is_fifo)
    except OSError as error:
        raise InputError("stdin", uri, f"a fifo that opens ({error.strerror})") from error


def widen_pipe(fd: int) -> None:
    """Let the pipe buffer more, where the host's limits permit it."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    except OSError:
        pass  # over the user's share of pipe pages, or no pipe: the default works, slower


async def wait_writable(fd: int) -> None:
    """Return once ``fd`` takes data again."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)


class LogDriverFailed(ShimError):
    """The program of a ``binary://`` URI did not start, or ended before it was ready."""
