"""Network namespaces seen from outside: the host's, and one that a killed shim left.

Imports little: ``delete`` is in a hurry.
"""

from __future__ import annotations

import os
import socket

__all__ = ["TAP_NAME", "is_host_network", "is_host_stat", "release_network"]

TAP_NAME = "void0"
"""Name of our tap in a namespace that a VM joins. Only one VM can have it, and so the network."""

_CLONE_NEWNET = 0x40000000
_OURS = ("/proc/self/ns/net", "/proc/1/ns/net")


def is_host_network(path: str) -> bool:
    """Whether ``path`` is the network namespace of this process or of the host's init."""
    try:
        return bool(path) and is_host_stat(os.stat(path))
    except OSError:
        return False


def is_host_stat(found: os.stat_result) -> bool:
    """Tell the same from the ``stat`` of a namespace."""
    for path in _OURS:
        try:
            ours = os.stat(path)
        except OSError:
            continue  # init's belongs to root
        if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
            return True
    return False


def release_network(path: str) -> None:
    """Remove what a killed shim left in the namespace at ``path``; nothing there is no error.

    Forks, because it enters the namespace. What a VM uses just now stays. Raises ``OSError``.
    """
    try:
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if is_host_stat(os.fstat(namespace)):
            return
        child = os.fork()
        if child == 0:
            _release_in_child(namespace)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(namespace)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(abs(code), os.strerror(abs(code)))


def _release_in_child(namespace: int) -> None:
    code = 0
    try:
        from shims.microvm.launcher import process_control
        from shims.microvm.netlink import Netlink
        from shims.microvm.redirect import find_redirects, remove_redirect

        process_control()("setns", namespace, _CLONE_NEWNET)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            netlink = Netlink(sock)
            if all(name != TAP_NAME for _, name in socket.if_nameindex()):
                for index in find_redirects(netlink):
                    remove_redirect(netlink, index)
    except OSError as error:
        code = (error.errno or 1) & 0x7F
    finally:
        os._exit(code)
