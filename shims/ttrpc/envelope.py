"""The two messages inside frames, Request and Response, coded by hand. Pure.

The protobuf library would copy the payload once more in each direction; here the payload stays a
view of what was received, and on the way out it is written behind a head that announces it.
Field numbers: protos/voidbox/ttrpc/v1/wire.proto. Fields may come in any order and unknown ones
are skipped, as protobuf demands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shims.ttrpc.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "Metadata",
    "Request",
    "Response",
    "decode_request",
    "decode_response",
    "request_head",
    "response_head",
]

Metadata = tuple[tuple[str, str], ...]
"""Keys may repeat; order is kept."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
_MOST_FIELDS = 1000
_MOST_PAIRS = 128
_MOST_IN_PAIR = 16
"""Fields are looked at one by one, and while that lasts nothing else runs: 4 MiB of them would take
seconds. No honest message comes near."""
_MASK64 = (1 << 64) - 1
_SIGN64 = 1 << 63
_SIGN32 = 1 << 31

_Value = int | memoryview


class Request(NamedTuple):
    """What a client asks for."""

    service: str
    method: str
    payload: memoryview | None
    """None when the field was absent, which matters for a client that streams."""
    timeout_ns: int
    """0 without limit; negative when it was over before it was sent."""
    metadata: Metadata


class Response(NamedTuple):
    """How a call ended."""

    code: int
    message: str
    payload: memoryview


def request_head(
    service: str,
    method: str,
    payload_size: int | None,
    timeout_ns: int = 0,
    metadata: Iterable[tuple[str, str]] = (),
) -> bytes:
    """Return a Request up to its payload, which has to follow; None sends no payload at all."""
    parts = [_text(0x0A, service), _text(0x12, method)]
    if timeout_ns:
        parts += (b"\x20", _varint(timeout_ns & _MASK64))
    for key, value in metadata:
        pair = _text(0x0A, key) + _text(0x12, value)
        parts += (b"\x2a", _varint(len(pair)), pair)
    if payload_size is not None:
        parts += (b"\x1a", _varint(payload_size))
    return b"".join(parts)


def response_head(code: int, message: str, payload_size: int) -> bytes:
    """Return a Response up to its payload, which has to follow."""
    status = b""
    if code:
        status = b"\x08" + _varint(code) + _text(0x12, message)
    # An empty status is written too: old clients insist on one.
    head = b"\x0a" + _varint(len(status)) + status
    return head + b"\x12" + _varint(payload_size) if payload_size else head


def decode_request(body: memoryview) -> Request:
    """Return the Request in ``body``; raise WireError when there is none."""
    service = method = ""
    payload: memoryview | None = None
    timeout_ns = 0
    metadata: list[tuple[str, str]] = []
    for field, value in _fields(body, _MOST_FIELDS):
        if isinstance(value, int):
            if field == 4:
                timeout_ns = value - (1 << 64) if value & _SIGN64 else value
        elif field == 1:
            service = _string(value)
        elif field == 2:
            method = _string(value)
        elif field == 3:
            payload = value
        elif field == 5:
            if len(metadata) == _MOST_PAIRS:
                raise WireError(f"more than {_MOST_PAIRS} pairs of metadata")
            metadata.append(_decode_pair(value))
    return Request(service, method, payload, timeout_ns, tuple(metadata))


def decode_response(body: memoryview) -> Response:
    """Return the Response in ``body``; raise WireError when there is none."""
    code = 0
    message = ""
    status = payload = memoryview(b"")
    for field, value in _fields(body, _MOST_FIELDS):
        if isinstance(value, int):
            continue
        if field == 1:
            status = value
        elif field == 2:
            payload = value
    for field, value in _fields(status, _MOST_FIELDS):
        if field == 1 and isinstance(value, int):
            code = _int32(value)
        elif field == 2 and not isinstance(value, int):
            message = _string(value)
    return Response(code, message, payload)


def _decode_pair(body: memoryview) -> tuple[str, str]:
    key = text = ""
    for field, value in _fields(body, _MOST_IN_PAIR):
        if not isinstance(value, int):
            if field == 1:
                key = _string(value)
            elif field == 2:
                text = _string(value)
    return key, text


def _fields(body: memoryview, most: int) -> Iterator[tuple[int, _Value]]:
    """Yield (number, value) of each field whose wire type we know a use for; ``most`` at most."""
    at, end = 0, len(body)
    while at < end:
        most -= 1
        if most < 0:
            raise WireError("a message has too many fields")
        tag, at = _read_varint(body, at)
        field, kind = tag >> 3, tag & 7
        if field == 0:
            raise WireError("field number 0")
        if kind == _VARINT:
            value, at = _read_varint(body, at)
            yield field, value
        elif kind == _BYTES:
            length, at = _read_varint(body, at)
            if length > end - at:
                raise WireError(f"field {field} is cut off")
            yield field, body[at : at + length]
            at += length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
            if at > end:
                raise WireError(f"field {field} is cut off")
        else:
            raise WireError(f"field {field} has wire type {kind}")


def _read_varint(body: memoryview, at: int) -> tuple[int, int]:
    """Return (value, position after it), taking at most ten bytes."""
    value = shift = 0
    for byte in body[at : at + _LONGEST_VARINT]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, at
        shift += 7
    raise WireError("a number is cut off or too long")


def _varint(value: int) -> bytes:
    """Return the encoding of a number that is not negative."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(tag: int, text: str) -> bytes:
    data = text.encode()
    return bytes((tag,)) + _varint(len(data)) + data


def _string(value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise WireError("a name is not UTF-8") from error


def _int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & _SIGN32 else value
