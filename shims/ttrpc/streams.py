"""Streams: what each frame means, for the server's and for the client's end. Pure.

One stream is one call. Feed frames to ``receive``, which keeps the books and returns what
happened; the driver (``server``, ``client``) acts on it and tells the books when it ends a stream
from its own side. Rules of the Go implementation: a client's ids are odd and rise strictly; a
frame of unknown type is ignored; the server's last word (a response, or data with REMOTE_CLOSED)
ends the stream in both directions.
"""

from __future__ import annotations

from typing import NamedTuple

from shims.ttrpc.codes import Code
from shims.ttrpc.envelope import Request, Response, decode_request, decode_response
from shims.ttrpc.errors import WireError
from shims.ttrpc.frames import Flag, Frame, FrameType

__all__ = ["Answer", "Call", "ClientStreams", "Closed", "Message", "Refusal", "ServerStreams"]

LAST_ID = 0xFFFFFFFF
MAX_STREAMS = 1024
MAX_HELD = 64 << 20
"""Bytes of requests that one connection may have in progress."""


class Call(NamedTuple):
    """A client asks for something."""

    stream_id: int
    request: Request
    client_streams: bool
    """Whether data frames of the client will follow."""


class Message(NamedTuple):
    """One message of a stream."""

    stream_id: int
    payload: memoryview


class Closed(NamedTuple):
    """The other side will send no further message on this stream."""

    stream_id: int


class Refusal(NamedTuple):
    """The frame broke a rule: answer with this status. If the stream is alive, it ends."""

    stream_id: int
    code: Code
    message: str
    breach: bool = False
    """Whether no correct peer sends such a frame, not even when it meets a limit or comes late."""


class Answer(NamedTuple):
    """The server's last word about a call."""

    stream_id: int
    response: Response


class _Open:
    """A stream as the server sees it."""

    __slots__ = ("held", "receiving")

    def __init__(self, receiving: bool, held: int) -> None:
        self.receiving = receiving
        self.held = held


class ServerStreams:
    """The streams of one connection, at the server's end."""

    def __init__(self, max_streams: int = MAX_STREAMS, max_held: int = MAX_HELD) -> None:
        self._max_streams = max_streams
        self._max_held = max_held
        self._last_id = 0
        self._held = 0
        self._open: dict[int, _Open] = {}

    def __len__(self) -> int:
        """Return how many calls are in progress: their handlers have not ended."""
        return len(self._open)

    def __contains__(self, stream_id: int) -> bool:
        """Return whether the call is in progress."""
        return stream_id in self._open

    def receive(self, frame: Frame) -> list[Call | Message | Closed | Refusal]:
        """Return what ``frame`` means, in order; nothing when it is to be ignored."""
        stream_id = frame.stream_id
        if frame.body is None:
            return [_too_long(frame)]
        if frame.type not in (FrameType.REQUEST, FrameType.DATA):
            return []
        if stream_id % 2 == 0:
            return [_breach(stream_id, "StreamID must be odd for client initiated streams")]
        if frame.type == FrameType.REQUEST:
            return [self._request(frame, frame.body)]
        return self._data(frame, frame.body)

    def finish(self, stream_id: int) -> None:
        """Forget a call: it was answered, and its handler has ended. May be repeated."""
        if (stream := self._open.pop(stream_id, None)) is not None:
            self._held -= stream.held

    def _request(self, frame: Frame, body: memoryview) -> Call | Refusal:
        stream_id = frame.stream_id
        if stream_id <= self._last_id:
            return _breach(stream_id, "StreamID cannot be re-used and must increment")
        self._last_id = stream_id
        if len(self._open) >= self._max_streams:
            text = f"{self._max_streams} calls are in progress on this connection"
            return Refusal(stream_id, Code.RESOURCE_EXHAUSTED, text)
        if self._held + len(body) > self._max_held:
            text = f"calls in progress on this connection hold {self._held} bytes"
            return Refusal(stream_id, Code.RESOURCE_EXHAUSTED, text)
        try:
            request = decode_request(body)
        except WireError as error:
            return _breach(stream_id, f"request: {error}")
        client_streams = bool(frame.flags & Flag.REMOTE_OPEN)
        self._open[stream_id] = _Open(client_streams, len(body))
        self._held += len(body)
        return Call(stream_id, request, client_streams)

    def _data(self, frame: Frame, body: memoryview) -> list[Call | Message | Closed | Refusal]:
        stream_id = frame.stream_id
        stream = self._open.get(stream_id)
        if stream is None:
            # A client that streams may not have heard yet that we ended the call.
            never = stream_id > self._last_id
            text = "StreamID is no longer active"
            return [Refusal(stream_id, Code.INVALID_ARGUMENT, text, never)]
        if not stream.receiving:
            return [_breach(stream_id, "data on a stream that the client has closed")]
        closing = bool(frame.flags & Flag.REMOTE_CLOSED)
        if closing and body:
            return [_breach(stream_id, "data close message cannot include data")]
        if closing:
            stream.receiving = False
            return [Closed(stream_id)]
        return [] if frame.flags & Flag.NO_DATA else [Message(stream_id, body)]


class ClientStreams:
    """The streams of one connection, at the client's end."""

    def __init__(self) -> None:
        self._next_id = 1
        self._open: set[int] = set()

    def __len__(self) -> int:
        """Return how many calls wait for something."""
        return len(self._open)

    def __contains__(self, stream_id: int) -> bool:
        """Return whether the call still waits for something."""
        return stream_id in self._open

    def open(self) -> int | None:
        """Return the id of a new stream; None when this connection has used up its ids."""
        stream_id = self._next_id
        if stream_id > LAST_ID:
            return None
        self._next_id += 2
        self._open.add(stream_id)
        return stream_id

    def finish(self, stream_id: int) -> None:
        """Forget a call, answered or given up: what still comes for it is dropped."""
        self._open.discard(stream_id)

    def receive(self, frame: Frame) -> list[Message | Answer | Closed | Refusal]:
        """Return what ``frame`` means, in order; nothing when nobody waits for it."""
        stream_id = frame.stream_id
        if stream_id not in self._open:
            return []
        if frame.body is None:
            return [_too_long(frame)]
        if frame.type == FrameType.RESPONSE:
            try:
                return [Answer(stream_id, decode_response(frame.body))]
            except WireError as error:
                return [Refusal(stream_id, Code.INTERNAL, f"response: {error}")]
        if frame.type != FrameType.DATA:
            return []
        events: list[Message | Answer | Closed | Refusal] = []
        if not frame.flags & Flag.NO_DATA:
            events.append(Message(stream_id, frame.body))
        if frame.flags & Flag.REMOTE_CLOSED:
            events.append(Closed(stream_id))
        return events


def _breach(stream_id: int, text: str) -> Refusal:
    return Refusal(stream_id, Code.INVALID_ARGUMENT, text, breach=True)


def _too_long(frame: Frame) -> Refusal:
    text = f"message length {frame.length} exceeds the maximum message size"
    return Refusal(frame.stream_id, Code.RESOURCE_EXHAUSTED, text)
