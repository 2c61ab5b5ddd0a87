"""rtnetlink, as much of it as the network of one namespace takes: requests, dumps, attributes.

By hand, because a container's start waits for it: a library that knows all of netlink takes ten
times as long to import as all of this takes to run. A socket stays in the network namespace in
which it was made, so one that a child opened there serves the shim from outside.

Facts: linux/netlink.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

__all__ = ["Netlink", "attribute", "attributes", "nest", "number", "text"]

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_DUMP_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_TYPE_MASK = 0x3FFF
"""The upper two bits of an attribute's type say how it is coded."""
_LARGEST = 1 << 18
_TIMEOUT = 5.0
_ATTEMPTS = 5


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """Return an attribute that is an unsigned 32-bit number."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """Return an attribute that is a string."""
    return attribute(kind, value.encode() + b"\0")


def nest(kind: int, *inner: bytes) -> bytes:
    """Return an attribute of attributes."""
    return attribute(kind, b"".join(inner))


def attributes(data: bytes) -> dict[int, bytes]:
    """Return attributes by their type. What is cut short is left out."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= size <= len(data) - at:
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return found


class Netlink:
    """A NETLINK_ROUTE socket, and the network namespace that it belongs to. Owns the socket.

    Calls block for microseconds: the kernel answers before ``send`` returns.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.settimeout(_TIMEOUT)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket, which may have been all that kept the namespace."""
        self._sock.close()

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Send a request and wait for the kernel's verdict. Raises ``OSError``."""
        sequence = self._send(kind, flags | _ACK, body)
        for answer, _, payload in self._messages(sequence):
            if answer == _ERROR:
                _raise(payload)
                return

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of all messages of a dump. Raises ``OSError``."""
        found, whole = self._dump(kind, body)
        for _ in range(_ATTEMPTS):
            if whole:
                break
            found, whole = self._dump(kind, body)
        return found

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        """Return what there is, and whether nothing changed in the meantime."""
        sequence = self._send(kind, _DUMP, body)
        found: list[bytes] = []
        whole = True
        for answer, flags, payload in self._messages(sequence):
            whole = whole and not flags & _DUMP_INTERRUPTED
            if answer == _DONE:
                break
            if answer == _ERROR:
                _raise(payload)
                break
            found.append(payload)
        return found, whole

    def _send(self, kind: int, flags: int, body: bytes) -> int:
        self._sequence += 1
        size = _HEADER.size + len(body)
        self._sock.send(_HEADER.pack(size, kind, flags | _REQUEST, self._sequence, 0) + body)
        return self._sequence

    def _messages(self, sequence: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield type, flags and body of each answer to a request; the caller knows the last."""
        while True:
            data = self._sock.recv(_LARGEST)
            at = 0
            while at + _HEADER.size <= len(data):
                size, kind, flags, answered, _ = _HEADER.unpack_from(data, at)
                if size < _HEADER.size:
                    break
                if answered == sequence:
                    yield kind, flags, data[at + _HEADER.size : at + size]
                at += (size + 3) & ~3


def _raise(payload: bytes) -> None:
    code = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
    if code:
        raise OSError(code, os.strerror(code))
