"""The socket that containerd connects to: where it is, who owns it, and how a dead one is replaced.

The low-level ``_socket`` is used because the public module imports enum and selectors, which take
longer than a start may.
"""

from __future__ import annotations

import _socket
import errno
import os

from shims.containerd.shim.state import private_directory

__all__ = ["bind_socket", "is_listening", "socket_path"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_PATH = 106
"""Bytes of a unix socket's path, as containerd allows; the kernel's limit is 107."""
_BACKLOG = 128


def socket_path(directory: str, parts: Iterable[str]) -> str:
    """Return the path for a shim named by ``parts`` (containerd's address, namespace, group).

    Raises ValueError when it is too long for the kernel.
    """
    name = _hash("/".join(parts))
    path = f"{directory}/{name}"
    if len(os.fsencode(path)) > LONGEST_PATH:
        path = f"{directory}/{name[:32]}"
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(
            f"{directory} is too long a path for sockets; {LONGEST_PATH} bytes at most"
        )
    return path


def _hash(text: str) -> str:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # Python 3.11; hashlib loads OpenSSL, which takes longer
    except ImportError:
        try:
            from _sha2 import sha256  # type: ignore[import-not-found]
        except ImportError:
            from hashlib import sha256
    digest: str = sha256(text.encode()).hexdigest()
    return digest


def is_listening(path: str) -> bool:
    """Return whether somebody accepts connections at ``path``."""
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    try:
        probe.connect(path)
    except BlockingIOError:
        return True  # the queue is full: somebody listens, and is busy
    except OSError as error:
        if error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK):
            return False
        raise
    finally:
        probe.close()
    return True


def bind_socket(
    path: str, kind: int = _socket.SOCK_STREAM, backlog: int | None = _BACKLOG
) -> _socket.socket:
    """Return a socket that listens at ``path`` with mode 0600; replace what a dead process left.

    With ``backlog`` None it is bound only. The caller holds the lock for this path and has seen
    that nobody listens there.
    """
    private_directory(os.path.dirname(path))
    listener = _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            os.unlink(path)
            listener.bind(path)
        if backlog is not None:
            listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener
