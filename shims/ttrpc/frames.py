"""Frames: how ttrpc cuts a byte stream into messages. Pure: no I/O happens here.

A frame is a header of ten bytes (length of the body, stream id, type, flags; big-endian) and the
body. ``FrameReader`` owns the memory into which bytes are read: small frames share one scratch
buffer, a large body gets a buffer of its own into which the kernel writes directly, so that a
body of 1 MiB is not copied on its way in.
Source: containerd/ttrpc PROTOCOL.md and channel.go.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

__all__ = ["HEADER_SIZE", "MAX_BODY", "Flag", "Frame", "FrameReader", "FrameType", "frame_header"]

HEADER_SIZE = 10
MAX_BODY = 4 << 20
"""Longest body that the Go implementation accepts."""

_HEADER = Struct(">IIBB")
_SCRATCH = 64 * 1024
_SMALL = _SCRATCH // 2
"""Bodies up to this length are cut out of the scratch buffer."""


class FrameType(IntEnum):
    """What the body is; other types are reserved, and ignored."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Flag(IntFlag):
    """What a frame says about its stream."""

    REMOTE_CLOSED = 1
    """The sender will send no more on this stream."""
    REMOTE_OPEN = 2
    """The sender will send data frames on this stream."""
    NO_DATA = 4
    """The frame carries no message (an empty body alone would be an empty message)."""


class Frame(NamedTuple):
    """One message. ``body`` is None when it was longer than allowed, and was dropped."""

    stream_id: int
    type: int
    flags: int
    body: memoryview | None
    length: int
    """Length that the header announced."""


def frame_header(length: int, stream_id: int, kind: int, flags: int = 0) -> bytes:
    """Return the ten bytes that precede a body of ``length`` bytes."""
    return _HEADER.pack(length, stream_id, kind, flags)


class FrameReader:
    """Turns bytes into frames.

    ``buffer`` says where the next bytes go, ``advance`` takes note that they are there and returns
    the frames that are complete now. Memory: the scratch buffer plus one body of ``max_body``.
    """

    __slots__ = ("_body", "_end", "_filled", "_header", "_max_body", "_scratch", "_skip", "_start")

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self._max_body = max_body
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._start = 0
        self._end = 0
        self._header = (0, 0, 0, 0)
        self._body: memoryview | None = None
        self._filled = 0
        self._skip = 0

    @property
    def partial(self) -> bool:
        """Whether the rest of a frame is still to come."""
        return self._body is not None or self._skip > 0 or self._end > self._start

    def buffer(self) -> memoryview:
        """Return writable memory for at least one byte; call ``advance`` after filling it."""
        if self._body is not None:
            return self._body[self._filled :]
        if self._start:
            # What is left is shorter than a small frame, so it fits in front of what comes.
            rest = bytes(self._scratch[self._start : self._end])
            self._scratch[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._scratch[self._end :]

    def advance(self, count: int) -> list[Frame]:
        """Take ``count`` bytes that were written to ``buffer``; return the frames they complete."""
        if self._body is not None:
            return self._advance_body(count)
        self._end += count
        frames: list[Frame] = []
        while self._cut(frames):
            pass
        return frames

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Take bytes that are already in memory; return the frames they complete."""
        frames: list[Frame] = []
        view = memoryview(data)
        while view:
            target = self.buffer()
            count = min(len(target), len(view))
            target[:count] = view[:count]
            frames += self.advance(count)
            view = view[count:]
        return frames

    def _advance_body(self, count: int) -> list[Frame]:
        assert self._body is not None
        self._filled += count
        if self._filled < len(self._body):
            return []
        length, stream_id, kind, flags = self._header
        body, self._body = self._body, None
        return [Frame(stream_id, kind, flags, body, length)]

    def _cut(self, frames: list[Frame]) -> bool:
        """Cut one frame out of the scratch buffer; return whether another may follow."""
        if self._skip:
            return self._drop(frames)
        start = self._start + HEADER_SIZE
        if start > self._end:
            return False
        header = _HEADER.unpack_from(self._scratch, self._start)
        length, stream_id, kind, flags = header
        if length > self._max_body:
            self._header, self._skip, self._start = header, length, start
            return True
        end = start + length
        if end <= self._end:
            self._start = end
            body = memoryview(bytes(self._scratch[start:end]))
            frames.append(Frame(stream_id, kind, flags, body, length))
            return True
        if length > _SMALL:
            self._body = memoryview(bytearray(length))
            self._filled = self._end - start
            self._body[: self._filled] = self._scratch[start : self._end]
            self._header, self._start, self._end = header, 0, 0
        return False

    def _drop(self, frames: list[Frame]) -> bool:
        """Throw away bytes of a body that is too long; report the frame after its last byte."""
        count = min(self._skip, self._end - self._start)
        self._skip -= count
        self._start += count
        if self._skip:
            return False
        length, stream_id, kind, flags = self._header
        frames.append(Frame(stream_id, kind, flags, None, length))
        return True
