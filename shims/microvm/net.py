"""Tap devices: the VM's end of a network.

A tap is opened inside the network namespace that it belongs to, and reaches QEMU as a descriptor:
QEMU itself runs in an empty namespace and can open nothing else. A child does the opening, because
a namespace belongs to a thread and must not be changed under an event loop.

Facts: Documentation/networking/tuntap.rst of the kernel, linux/if_tun.h.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from shims.core.errors import TargetError
from shims.microvm.launcher import fork_task, process_control
from shims.microvm.links import read_links
from shims.microvm.netlink import Netlink
from shims.microvm.netns import TAP_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["open_namespace", "open_tap"]


_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_NAME_SIZE = 16
_TIMEOUT = 10.0


async def open_tap(namespace: str | None, name: str = "tap%d") -> int:
    """Return a new tap device, up, of the network namespace at ``namespace`` (a path).

    With None it lives in a new namespace of its own, which ends with the descriptor: what a
    template is built with. The descriptor is the caller's, and the device goes with its last copy.
    Raises ``TargetError``.
    """

    def task(answer: socket.socket) -> None:
        _enter(None if namespace is None else os.open(namespace, os.O_RDONLY | os.O_CLOEXEC))
        socket.send_fds(answer, [b"tap"], [_open(name)])

    return (await _receive(task, "cannot open a tap device"))[0]


async def open_namespace(namespace: int) -> tuple[Netlink, int | None]:
    """Return an rtnetlink socket in a network namespace, and a tap that is not up.

    ``namespace`` is an open descriptor of it. There is no tap where there is no link but loopback.
    Both are the caller's; the namespace lasts as long as they do. Raises ``TargetError``.
    """

    def task(answer: socket.socket) -> None:
        _enter(namespace)
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        fds = [netlink.fileno()]
        if read_links(Netlink(netlink)):
            fds.append(_open_only(TAP_NAME))
        socket.send_fds(answer, [b"net"], fds)

    fds = await _receive(task, "cannot join the network namespace")
    return Netlink(socket.socket(fileno=fds[0])), fds[1] if len(fds) > 1 else None


async def _receive(task: Callable[[socket.socket], None], what: str) -> list[int]:
    """Run ``task`` in a child and return the descriptors that it sends."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = fork_task(lambda: task(theirs), None)
        try:
            async with asyncio.timeout(_TIMEOUT):
                code = await asyncio.shield(process.exited)
        finally:
            process.kill()
        if code != 0:
            raise TargetError(f"{what}: {process.failure}")
        _, fds, _, _ = socket.recv_fds(ours, 16, 2)
    for fd in fds:
        os.set_inheritable(fd, False)
    return fds


def _enter(namespace: int | None) -> None:
    """Enter a network namespace, or a new one."""
    control = process_control()
    if namespace is None:
        control("unshare", _CLONE_NEWNET)
    else:
        control("setns", namespace, _CLONE_NEWNET)


def _open_only(name: str) -> int:
    try:
        return _create(name)[0]
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ValueError("another VM has this network already") from error
        if error.errno == errno.EINVAL:
            raise ValueError(f"a link that is no tap is called {name} there") from error
        raise


def _open(name: str) -> int:
    """Open a tap and bring it up."""
    import fcntl

    fd, given = _create(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", given, _IFF_UP))
    return fd


def _create(name: str) -> tuple[int, bytes]:
    """Open a tap; return its descriptor and the name that it got."""
    import fcntl

    encoded = name.encode()
    if len(encoded) >= _NAME_SIZE:
        raise ValueError(f"{name} is longer than the name of an interface may be")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    # The header lets guest and host leave checksums and segmentation to each other.
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    request = fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", encoded, flags))
    return fd, request[:_NAME_SIZE]  # the kernel has filled in the number
