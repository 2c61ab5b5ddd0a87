"""The nursery's inside: import everything once, then fork a daemon for each ``start`` that asks.

The process is single-threaded, runs no event loop and holds nothing of any container, so a fork of
it is as good as a new interpreter. The daemon is a grandchild: like one that ``start`` launches it
belongs to init, and nobody has to reap it.

It is forked before anybody asks: ``start`` waits for the answer, and two forks of a process of this
size take longer than all else that is done here. The *spare* waits at a door for its request, and
ends when the nursery does.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import socket

__all__ = ["PRELOADED", "serve"]

PRELOADED = (
    "asyncio",
    "google.protobuf.any_pb2",
    "shims.containerd.shim.daemon",
    "shims.containerd.shim.service",
    "shims.containerd.shim.create",
    "shims.containerd.shim.attach",
    "shims.containerd.shim.report",
    "shims.containerd.shim.group",
    "shims.containerd.shim.pushing",
    "shims.containerd.shim.stdio",
    "shims.containerd.shim.removal",
    "shims.guest.link",
    "shims.guest.plan",
    "shims.guest.image.find",
    "shims.microvm.machine",
    "shims.microvm.network",
    "shims.microvm.process",
    "shims.microvm.shelf",
    "shims.microvm.hotplug",
    "shims.microvm.images",
    "shims.microvm.rootfs",
    "shims.microvm.scratch",
    "shims.ttrpc.server",
    "shims.ttrpc.client",
)
IDLE_SECONDS = 600.0
_REQUEST_SECONDS = 1.0
_FIRST_FD = 3
_DOOR_BYTES = 4 << 20
"""A request, flags and environment, is one packet: the door must take the largest."""


def serve(path: str, listener: socket.socket, idle_seconds: float = IDLE_SECONDS) -> int:
    """Fork daemons until nobody has asked for ``idle_seconds``; then take the socket away."""
    import importlib

    us = os.getpid()
    # As the daemon does: asyncio does without TLS when there is none.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    for name in PRELOADED:
        importlib.import_module(name)
    title = _Title()
    gc.collect()
    # Children share these objects; a collection in one of them must not touch, and so copy, them.
    gc.freeze()
    signal.signal(signal.SIGTERM, _end)
    listener.settimeout(idle_seconds)
    try:
        door = _fork_spare(title)
        # Only now: whoever calls before is refused, and launches a daemon at once.
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(_REQUEST_SECONDS)
                used = _answer(connection, door)
            if used:
                door.close()
                door = _fork_spare(title)
    except TimeoutError:
        return 0
    finally:
        if os.getpid() == us:
            # Nobody else has this name as long as we hold its lock.
            os.unlink(path)


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)


def _answer(connection: socket.socket, door: socket.socket) -> bool:
    """Hand a request to the spare behind ``door``; say whether that one is used up."""
    import socket
    import struct

    from shims.containerd.shim.nursery import LARGEST_REQUEST

    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    if struct.unpack("iII", credentials)[1:] != (os.geteuid(), os.getegid()):
        return False
    try:
        request, descriptors, flags, _ = socket.recv_fds(connection, LARGEST_REQUEST, 2)
    except OSError:
        return False
    try:
        if len(descriptors) != 2 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            return False
        # The spare answers. If it was killed, nobody does, and the caller launches a daemon.
        socket.send_fds(door, [request], [*descriptors, connection.fileno()])
    except OSError:
        pass
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def _fork_spare(title: _Title) -> socket.socket:
    """Return the door behind which a new spare waits."""
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _DOOR_BYTES)
    ours.settimeout(_REQUEST_SECONDS)
    child = os.fork()
    if child:
        theirs.close()
        os.waitpid(child, 0)
        return ours
    try:
        if os.fork() == 0:
            ours.close()
            _wait_for_request(theirs, title)
    finally:
        os._exit(0)


def _wait_for_request(door: socket.socket, title: _Title) -> NoReturn:
    """Be the spare: wait, without a bound but the nursery's life, and become a daemon."""
    import socket

    from shims.containerd.shim.nursery import LARGEST_REQUEST

    status = 0
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        kept = _move_up(door.fileno())
        os.closerange(_FIRST_FD, kept)  # the nursery's name and lock are not ours
        door = socket.socket(fileno=os.dup(kept))
        os.close(kept)
        title.show("spare")
        request, descriptors, _, _ = socket.recv_fds(door, LARGEST_REQUEST, 3)
        door.close()
        if len(descriptors) == 3:
            status = _become_daemon(request, descriptors, title)
    except BaseException:  # the edge of a process, whose log is the only witness
        import traceback

        traceback.print_exc()
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def _become_daemon(request: bytes, descriptors: list[int], title: _Title) -> int:
    """Carry out a request; ``descriptors`` are the listener, the log and the caller."""
    from shims.containerd.shim import entry
    from shims.containerd.shim.start import LISTENER_FD

    words = [os.fsdecode(word) for word in request.split(b"\0")[:-1]]
    count = int(words[0])
    arguments, settings = words[1 : count + 1], words[count + 1 :]
    os.environ.clear()
    os.environ.update({key: value for key, _, value in (s.partition("=") for s in settings)})
    # Out of the way first: the numbers below are where descriptors of ours may be.
    listener, log, answer = (_move_up(fd) for fd in descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    os.dup2(listener, LISTENER_FD)
    os.dup2(log, 2)
    title.show(*arguments, "daemon")
    # From here on the caller counts on us. One that has given up gets no daemon.
    os.write(answer, str(os.getpid()).encode())
    os.close(answer)
    return entry.run([*arguments, "daemon"])


def _move_up(descriptor: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)


# ---- the command line that ps shows ------------------------------------------------------------

_PR_SET_MM = 35
_PR_SET_MM_ARG_END = 9


class _Title:
    """Our command line, for people who look for one daemon of many. Made once, in the nursery."""

    def __init__(self) -> None:
        """Find where the kernel reads it: fields 48 and 49 of /proc/self/stat."""
        import ctypes

        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        self._begin, self._end = int(fields[45]), int(fields[46])
        with open("/proc/self/cmdline", "rb") as file:
            self._program = file.read().split(b"\0nursery\0")[0]
        self._fill = ctypes.memset
        self._copy = ctypes.memmove
        self._prctl = ctypes.CDLL(None).prctl
        self._address = ctypes.c_ulong

    def show(self, *words: str) -> None:
        """Put ``words`` behind the program's name, where there is room for them."""
        text = b"\0".join([self._program, *map(os.fsencode, words)]) + b"\0"
        begin, end = self._begin, self._end
        if not 0 < begin < begin + len(text) <= end:
            return  # no room: then ps shows the nursery's
        self._fill(begin, 0, end - begin)
        self._copy(begin, text, len(text))
        # Without CAP_SYS_RESOURCE this fails, and the command line ends in empty words.
        self._prctl(_PR_SET_MM, _PR_SET_MM_ARG_END, self._address(begin + len(text)), 0, 0)
