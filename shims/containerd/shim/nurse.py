"""The nursery's inside: import everything once, then fork a daemon for each ``start`` that asks.

The process is single-threaded, runs no event loop and holds nothing of any container, so a fork of
it is as good as a new interpreter. The daemon is a grandchild: like one that ``start`` launches it
belongs to init, and nobody has to reap it.
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


def serve(path: str, listener: socket.socket, idle_seconds: float = IDLE_SECONDS) -> int:
    """Fork daemons until nobody has asked for ``idle_seconds``; then take the socket away."""
    import importlib

    us = os.getpid()
    # As the daemon does: asyncio does without TLS when there is none.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    for name in PRELOADED:
        importlib.import_module(name)
    _find_title()
    gc.collect()
    # Children share these objects; a collection in one of them must not touch, and so copy, them.
    gc.freeze()
    signal.signal(signal.SIGTERM, _end)
    listener.settimeout(idle_seconds)
    try:
        # Only now: whoever calls before is refused, and launches a daemon at once.
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(_REQUEST_SECONDS)
                _answer(connection)
    except TimeoutError:
        return 0
    finally:
        if os.getpid() == us:
            # Nobody else has this name as long as we hold its lock.
            os.unlink(path)


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)


def _answer(connection: socket.socket) -> None:
    import socket
    import struct

    from shims.containerd.shim.nursery import LARGEST_REQUEST

    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    if struct.unpack("iII", credentials)[1:] != (os.geteuid(), os.getegid()):
        return
    try:
        request, descriptors, flags, _ = socket.recv_fds(connection, LARGEST_REQUEST, 2)
    except OSError:
        return
    try:
        if len(descriptors) == 2 and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _fork(connection, request, descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(connection: socket.socket, request: bytes, descriptors: list[int]) -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            _become_daemon(connection, request, descriptors)
    finally:
        os._exit(0)


def _become_daemon(connection: socket.socket, request: bytes, descriptors: list[int]) -> NoReturn:
    status = 1
    try:
        from shims.containerd.shim import entry
        from shims.containerd.shim.start import LISTENER_FD

        words = [os.fsdecode(word) for word in request.split(b"\0")[:-1]]
        count = int(words[0])
        arguments, settings = words[1 : count + 1], words[count + 1 :]
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update({key: value for key, _, value in (s.partition("=") for s in settings)})
        # Out of the way first: the numbers below are where descriptors of ours may be.
        listener, log, answer = (_move_up(fd) for fd in (*descriptors, connection.fileno()))
        os.dup2(listener, LISTENER_FD)
        os.dup2(log, 2)
        _show(arguments)
        # From here on the caller counts on us. One that has given up gets no daemon.
        os.write(answer, str(os.getpid()).encode())
        connection.detach()
        status = entry.run([*arguments, "daemon"])
    except BaseException:  # the edge of a process, whose log is the only witness
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _move_up(descriptor: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)


# ---- the command line that ps shows ------------------------------------------------------------

_title: tuple[int, int] = (0, 0)
_PR_SET_MM = 35
_PR_SET_MM_ARG_END = 9


def _find_title() -> None:
    """Find where the kernel reads our command line: fields 48 and 49 of /proc/self/stat."""
    global _title
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    _title = (int(fields[45]), int(fields[46]))
    import ctypes  # here, once, and not in every child

    del ctypes


def _show(arguments: list[str]) -> None:
    """Make our command line that of a daemon, for people who look for one of many."""
    import ctypes

    begin, end = _title
    with open("/proc/self/cmdline", "rb") as file:
        kept = file.read().split(b"\0nursery\0")[0]
    text = b"\0".join([kept, *map(os.fsencode, arguments), b"daemon"]) + b"\0"
    if not 0 < begin < begin + len(text) <= end:
        return  # no room: then ps shows the nursery's
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, text, len(text))
    # Without CAP_SYS_RESOURCE this fails, and the command line ends in empty words.
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_MM, _PR_SET_MM_ARG_END, ctypes.c_ulong(begin + len(text)), 0, 0)
