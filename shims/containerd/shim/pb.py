"""The few protobuf messages of the start path, by hand: the library takes longer to import.

Encoding: ``pb.text(1, "id") + pb.number(2, 137)``. Decoding: ``pb.fields(data)`` yields numbers and
values. Source: the protobuf encoding guide.
"""

from __future__ import annotations

__all__ = ["any_message", "fields", "message", "number", "text", "timestamp"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK = (1 << 64) - 1
_NS = 1_000_000_000


def varint(value: int) -> bytes:
    """Return ``value`` as a varint; a negative one takes ten bytes, as int32 and enums do."""
    value &= _MASK
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """Return an integer field; nothing for zero, which is the default."""
    return varint(field << 3 | _VARINT) + varint(value) if value else b""


def message(field: int, data: bytes) -> bytes:
    """Return an embedded message or bytes field, also when it is empty."""
    return varint(field << 3 | _BYTES) + varint(len(data)) + data


def text(field: int, value: str) -> bytes:
    """Return a string field; nothing for the empty string."""
    return message(field, value.encode()) if value else b""


def timestamp(field: int, at_ns: int) -> bytes:
    """Return a google.protobuf.Timestamp field."""
    return message(field, number(1, at_ns // _NS) + number(2, at_ns % _NS))


def any_message(field: int, type_url: str, value: bytes) -> bytes:
    """Return a google.protobuf.Any field."""
    return message(field, text(1, type_url) + message(2, value))


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field; raise ValueError when ``data`` is no message."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        field, kind = tag >> 3, tag & 7
        if field == 0:
            raise ValueError("field number 0")
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield field, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if size > end - at:
            raise ValueError("a field is cut off")
        yield field, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for byte in data[at : at + 10]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7
    raise ValueError("a number is cut off or too long")
