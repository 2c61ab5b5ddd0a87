"""The nursery, seen from outside: a process that forks daemons which need not import anything.

Importing what a daemon needs takes longer than cloning its VM, and the result is the same every
time. So one process per installation imports it once, and every later ``start`` asks that process
to fork. The daemons also share those pages. It is a convenience, never a need: without it ``start``
launches a fresh interpreter, and a daemon launched like that starts the nursery for the next one
when its own container runs. It may die at any time.

The name of its socket says what a child would inherit: the code (names, sizes and times of our
files), the interpreter, namespaces, cgroup, limits and label. A new release, or a containerd of
another service, finds no socket under its name, and the old nursery ends by itself (``nurse``).
One nursery per name: it holds the lock beside its socket as long as it lives.

One request per connection: the flags and the environment, each ended by NUL, with the listening
socket and the log as descriptors; the answer is the daemon's pid, sent by the daemon itself.

This module is on the path that every container start waits for: it imports next to nothing.
"""

from __future__ import annotations

import _socket
import os
import sys

from shims.containerd.shim.processes import SIGKILL
from shims.containerd.shim.sockets import bind_socket, socket_path
from shims.containerd.shim.state import private_directory
from shims.core.paths import runtime_path

__all__ = ["LARGEST_REQUEST", "SWITCH", "begin", "fork_daemon", "nursery_path"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SWITCH = "VOID_SHIMS_NURSERY"
"""``off`` in the environment of containerd: every daemon gets an interpreter of its own."""
LARGEST_REQUEST = 1 << 20
_ANSWER_SECONDS = 2.0
LOCK_FD = 4
_INHERITED = ("cgroup", "limits", "attr/current")
"""Files of /proc/self with what passes from a process to its children, and stays."""
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_CODE = ("core", "ttrpc", "guest", "guest/plan", "guest/image", "microvm", "containerd/shim")
_SHIMS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_TITLE_ROOM = 1024
"""Bytes of command line that a daemon may need to show its own flags in."""


def nursery_path(environ: Mapping[str, str]) -> str:
    """Return the path of the socket of the nursery that fits this process exactly."""
    parts = [sys.executable, sys.version, environ.get("VOID_SHIMS_LIBRARIES", "")]
    parts += (os.readlink(f"/proc/self/ns/{name}") for name in _NAMESPACES)
    for name in _INHERITED:
        parts.append(_read(f"/proc/self/{name}"))
    for folder in _CODE:
        with os.scandir(f"{_SHIMS}/{folder}") as entries:
            found = [entry for entry in entries if entry.name.endswith(".py")]
        for entry in sorted(found, key=lambda one: one.name):
            status = entry.stat()
            parts.append(f"{entry.name} {status.st_mtime_ns} {status.st_size}")
    return socket_path(runtime_path("n", environ=environ), parts)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:  # no security module: no label
        return ""


def fork_daemon(
    arguments: Sequence[str], environ: Mapping[str, str], descriptors: Sequence[int]
) -> int | None:
    """Return the pid of a new daemon; None when there is no nursery, or none that answers.

    ``descriptors``: listening socket and log. When None is returned, no daemon was or will be made.
    """
    if environ.get(SWITCH) == "off":
        return None
    words = [str(len(arguments)), *arguments, *(f"{key}={value}" for key, value in environ.items())]
    request = b"".join(os.fsencode(word) + b"\0" for word in words)
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in descriptors)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    connection.settimeout(_ANSWER_SECONDS)
    try:
        connection.connect(nursery_path(environ))
        connection.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        answer = connection.recv(64)
    except TimeoutError:
        answer = _give_up(connection)
    except (OSError, ValueError):  # ValueError: the runtime directory's path is too long
        return None
    finally:
        connection.close()
    return int(answer) if answer.isdigit() else None


def _give_up(connection: _socket.socket) -> bytes:
    """Let nobody answer from now on, and return what was answered until now."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    connection.shutdown(_socket.SHUT_RDWR)
    try:
        # One that hangs would cost every later start the same time.
        os.kill(int.from_bytes(credentials[:4], sys.byteorder), SIGKILL)
    except OSError:
        pass
    try:
        return connection.recv(64)
    except OSError:
        return b""


def begin(environ: Mapping[str, str]) -> None:
    """Start the nursery for later daemons unless it is there. Raises OSError and ValueError."""
    if environ.get(SWITCH) == "off":
        return
    import fcntl

    path = nursery_path(environ)
    private_directory(os.path.dirname(path))
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(f"{path}.lock", flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _spawn(path, lock, environ)
    except BlockingIOError:
        pass  # it lives, or is about to
    finally:
        os.close(lock)


def _spawn(path: str, lock: int, environ: Mapping[str, str]) -> None:
    import fcntl

    from shims.containerd.shim.start import LISTENER_FD

    main = os.path.join(os.path.dirname(os.path.abspath(__file__)), "main.py")
    flags = ["-I", "-S"] if sys.flags.no_site else ["-I"]
    # Bound here and not listening: until the nursery is ready, connections are refused at once.
    listener = bind_socket(path, _socket.SOCK_SEQPACKET, backlog=None)
    # Out of the way of the numbers that they will have.
    sources = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (listener.fileno(), lock)]
    try:
        # setsid(1) forks and ends, so the nursery belongs to init and not to the daemon.
        pid = os.posix_spawnp(
            "setsid",
            ["setsid", "--fork", sys.executable, *flags, main, "nursery", path, " " * _TITLE_ROOM],
            dict(environ),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, sources[0], LISTENER_FD),
                (os.POSIX_SPAWN_DUP2, sources[1], LOCK_FD),
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
            ],
            setsigmask=(),
            setsigdef=range(1, 32),
        )
        os.waitpid(pid, 0)
    finally:
        for source in sources:
            os.close(source)
        listener.close()
