"""The shims' end of the keeper: ask it, and start it where none runs."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

from shims.core.errors import TargetError, Unreachable
from shims.core.paths import ensure_private_dir
from shims.microvm import keeper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["KeeperGone", "Shelf", "connect_shelf"]

_START_TIMEOUT = 5.0
_LOCK_INTERVAL = 0.01
_ANSWER_TIMEOUT = 3.0
"""For an answer, or for room in the keeper's queue: what takes it a millisecond."""
_CREDENTIALS = struct.Struct("iII")


class KeeperGone(Unreachable):
    """The keeper hung up: it has ended, and the next connection starts another."""


class Shelf:
    """One connection to the keeper. ``async with`` or ``close``; requests one after the other.

    Owns the socket, which must not block.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def ask(
        self, request: dict[str, Any], fds: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        """Send one request, return the answer and the descriptors that came with it (now ours).

        Raises ``KeeperGone`` when the keeper hangs up, ``Unreachable`` when it does not answer,
        ``TargetError`` when it refuses.
        """
        try:
            socket.send_fds(self._sock, [json.dumps(request).encode()], list(fds))
        except OSError as error:
            raise KeeperGone(f"the keeper hung up: {error.strerror}") from error
        try:
            return await self.receive(_ANSWER_TIMEOUT)
        except TimeoutError:
            raise Unreachable(f"the keeper said nothing for {_ANSWER_TIMEOUT:g} s") from None

    async def receive(self, timeout: float) -> tuple[dict[str, Any], list[int]]:
        """Return the next answer, as ``ask`` does; raises ``TimeoutError`` after ``timeout`` s."""
        async with asyncio.timeout(timeout):
            await _readable(self._sock)
        try:
            packet, received, _, _ = socket.recv_fds(self._sock, keeper.LARGEST_PACKET, 2)
        except OSError as error:
            raise KeeperGone(f"the keeper hung up: {error.strerror}") from error
        if not packet:
            raise KeeperGone("the keeper hung up")
        answer = json.loads(packet)
        for fd in received:
            os.set_inheritable(fd, False)
        if "error" in answer:
            _close_all(received)
            raise TargetError(f"the keeper refused: {answer['error']}")
        return answer, received

    def close(self) -> None:
        """Hang up; a template that we promised to build becomes the next one's task."""
        self._sock.close()

    async def __aenter__(self) -> Self:
        """Return the connection itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hang up."""
        self.close()


async def connect_shelf(run_dir: Path, *, start: bool = True) -> Shelf:
    """Return a connection to the keeper of ``run_dir``, starting one unless ``start`` is false.

    Raises ``Unreachable`` when there is none, when the one there does not take connections any
    more, or when it belongs to somebody else.
    """
    if sock := await _reach(run_dir):
        return Shelf(sock)
    if not start:
        raise Unreachable("no keeper runs", hint="the next start of a VM starts one")
    ensure_private_dir(run_dir)
    lock = os.open(run_dir / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await _take(lock)
        # Somebody else may have started it while we waited for the lock.
        if sock := await _reach(run_dir):
            return Shelf(sock)
        _start(run_dir)
        if sock := await _reach(run_dir):
            return Shelf(sock)
    finally:
        os.close(lock)
    raise Unreachable("the keeper could not be started")


async def _reach(run_dir: Path) -> socket.socket | None:
    """Connect; None where nobody listens. No event tells when there is room in a full queue."""
    deadline = time.monotonic() + _ANSWER_TIMEOUT
    while True:
        try:
            return _connect(run_dir)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Unreachable("the keeper takes no connections any more") from None
            await asyncio.sleep(_LOCK_INTERVAL)


def _connect(run_dir: Path) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    directory = -1
    try:
        directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock.connect(f"/proc/self/fd/{directory}/keeper.sock")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)
    _, user, _ = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    if user != os.geteuid():
        sock.close()
        raise Unreachable(f"the keeper in {run_dir} belongs to user {user}")
    return sock


async def _take(lock: int) -> None:
    """Take the starting lock. Its holder needs milliseconds, and no event tells of its release."""
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Unreachable("somebody has been starting the keeper for too long") from None
            await asyncio.sleep(_LOCK_INTERVAL)
        else:
            return


def _start(run_dir: Path) -> None:
    """Start a keeper on a new socket. It can be asked at once: the socket listens already.

    setsid(1) forks and leaves, so that the keeper is nobody's child and in nobody's session.
    """
    directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = f"/proc/self/fd/{directory}/keeper.sock"
        if os.path.lexists(name):
            os.unlink(name)  # of a keeper that was killed
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(name)
            listener.listen(128)
            _spawn_detached(listener, str(run_dir))
    finally:
        os.close(directory)


def _spawn_detached(listener: socket.socket, run_dir: str) -> None:
    command = ["setsid", "--fork", _python(), "-I", "-S", keeper.__file__, run_dir]
    with open(os.devnull, "r+b") as null:
        source = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, 16)
        try:
            actions = [(os.POSIX_SPAWN_DUP2, null.fileno(), fd) for fd in (0, 1, 2)]
            actions.append((os.POSIX_SPAWN_DUP2, source, keeper.LISTENER))
            pid = os.posix_spawnp(command[0], command, {"PATH": os.defpath}, file_actions=actions)
        except OSError as error:
            raise Unreachable(f"cannot run {command[0]}: {error.strerror}") from error
        finally:
            os.close(source)
    os.waitpid(pid, 0)


def _python() -> str:
    """Return the interpreter that runs us; the keeper needs nothing of a virtual environment."""
    running = os.readlink("/proc/self/exe")
    return running if os.path.exists(running) else sys.executable


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock.fileno())
