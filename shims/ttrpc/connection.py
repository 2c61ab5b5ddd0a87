"""One connection on asyncio, seen alike from both ends: frames in, frames out, backpressure.

Outgoing: a writer awaits ``writable`` before each frame, so that at most one frame per waiting
call, ``MAX_WAITING`` bytes together, and asyncio's own high-water mark are in memory. Incoming:
reading pauses as long as somebody holds a reason (``hold`` and ``release``): an answer that the
peer does not read, a stream whose consumer is behind.
"""

from __future__ import annotations

import asyncio
import collections
import functools
from typing import TYPE_CHECKING, Any

from shims.ttrpc.codes import Code
from shims.ttrpc.errors import LinkClosed, RpcError
from shims.ttrpc.frames import Flag, Frame, FrameReader, FrameType, frame_header

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Connection", "Inbox"]

_JOINED = 32 * 1024
"""Payloads up to this size are joined with their header: one system call beats one copy."""
_INBOX_MESSAGES = 64
_INBOX_BYTES = 8 << 20
MAX_WAITING = 64 << 20
"""Bytes of frames that one connection may keep for a peer that does not take them."""
PATIENCE = 1.0
"""Seconds for which one slow stream may stop all reading; as in the Go implementation."""


class Connection(asyncio.BufferedProtocol):
    """Both ends' share of a connection; ``server`` and ``client`` derive from it.

    ``closed`` is set as soon as the connection is lost, for whatever reason.
    """

    def __init__(self, max_message: int) -> None:
        self.max_message = max_message
        self.loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(max_message)
        self._aborted = False
        self._congested = False
        self._waiting_bytes = 0
        self._waiting: collections.OrderedDict[asyncio.Future[None], None] = (
            collections.OrderedDict()
        )
        self._holds: set[object] = set()

    # What derived classes fill in.

    def frame_received(self, frame: Frame) -> None:
        """Act on one frame."""
        raise NotImplementedError

    def lost(self, reason: LinkClosed) -> None:
        """End every call: no frame will come or go any more."""
        raise NotImplementedError

    def congested(self, yes: bool) -> None:
        """Hear that the peer stopped, or resumed, taking what we send."""

    # For derived classes and streams.

    @property
    def transport(self) -> asyncio.Transport:
        """The transport; legal once connected."""
        assert self._transport is not None
        return self._transport

    @property
    def stalled(self) -> bool:
        """Whether the peer does not take what we send."""
        return self._congested

    async def writable(self, over: asyncio.Future[Any] | None = None, size: int = 0) -> None:
        """Wait until the peer takes data again; raise LinkClosed when it never will.

        Returns early when ``over`` is done: the caller's time is over, or what he wanted to send
        is not wanted any more. ``size`` bytes are kept meanwhile; raises RpcError
        (RESOURCE_EXHAUSTED) instead when those that wait already leave no room for them.
        """
        if self._congested:
            await self._queue(over, size)
        if self.closed.is_set() or self.transport.is_closing():
            raise LinkClosed("the connection is closed")

    async def _queue(self, over: asyncio.Future[Any] | None, size: int) -> None:
        if self._waiting_bytes + size > MAX_WAITING:
            text = f"the peer has not taken {self._waiting_bytes} bytes that wait for it"
            raise RpcError(Code.RESOURCE_EXHAUSTED, text)
        self._waiting_bytes += size
        try:
            while self._congested and not (over is not None and over.done()):
                await self._turn(over)
                if self.closed.is_set():
                    return
        finally:
            self._waiting_bytes -= size
            if self._waiting:
                # One after the other: the first to write may well stop all that follow.
                self.loop.call_soon(self._wake_next)

    async def _turn(self, over: asyncio.Future[Any] | None) -> None:
        """Wait until it is our turn to write, or ``over`` is done."""
        waiter = self.loop.create_future()
        self._waiting[waiter] = None
        wake = functools.partial(_wake, waiter)
        if over is not None:
            over.add_done_callback(wake)
        try:
            await waiter
        finally:
            self._waiting.pop(waiter, None)
            if over is not None:
                over.remove_done_callback(wake)

    def _wake_next(self) -> None:
        if self._waiting and not self._congested:
            _wake(self._waiting.popitem(last=False)[0])

    def check_size(self, size: int) -> None:
        """Raise RpcError when the peer would refuse a frame with a body of ``size`` bytes."""
        if size > self.max_message:
            text = f"message length {size} exceeds the maximum message size {self.max_message}"
            raise RpcError(Code.RESOURCE_EXHAUSTED, text)

    def send(
        self, stream_id: int, kind: FrameType, flags: int, head: bytes, payload: bytes = b""
    ) -> None:
        """Write one frame whose body is ``head`` and ``payload``; dropped when already closed."""
        if self._transport is None or self._transport.is_closing():
            return
        start = frame_header(len(head) + len(payload), stream_id, kind, flags) + head
        if len(payload) <= _JOINED:
            self._transport.write(start + payload)
        else:
            self._transport.write(start)
            self._transport.write(payload)

    def send_end(self, stream_id: int) -> None:
        """Write the frame that says: no more messages from here."""
        self.send(stream_id, FrameType.DATA, Flag.REMOTE_CLOSED | Flag.NO_DATA, b"")

    def hold(self, reason: object) -> None:
        """Stop reading until ``reason`` is released."""
        if not self._holds and self._transport is not None and not self.closed.is_set():
            self._transport.pause_reading()
        self._holds.add(reason)

    def release(self, reason: object) -> None:
        """Resume reading unless somebody else still holds it. May be repeated."""
        if reason not in self._holds:
            return
        self._holds.discard(reason)
        if not self._holds and self._transport is not None and not self.closed.is_set():
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once, dropping what was not sent yet. May be repeated."""
        self._aborted = True
        # asyncio's own abort fails on a transport that closed after it had sent what was left.
        if self._transport is not None and not self.closed.is_set():
            self._transport.abort()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where asyncio is to put the next bytes."""
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Act on the frames that ``nbytes`` more bytes complete."""
        self.act(self._reader.advance(nbytes))

    def received(self, data: bytes) -> None:
        """Act on bytes that somebody read from the socket before this connection began.

        They are dropped when the peer was refused, as the bytes after them are.
        """
        self.act(self._reader.feed(data))

    def act(self, frames: list[Frame]) -> None:
        """Act on the frames that one read completed, if any."""
        for frame in frames:
            if self._aborted:
                return  # one of them was the last that we wanted to hear
            self.frame_received(frame)

    def pause_writing(self) -> None:
        """Make writers wait: the peer does not read."""
        self._congested = True
        self.congested(True)

    def resume_writing(self) -> None:
        """Let writers go on."""
        self._congested = False
        self._wake_next()
        self.congested(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody that it is over."""
        reason = LinkClosed("the connection is closed")
        reason.__cause__ = exc
        self.closed.set()
        for waiter in tuple(self._waiting):
            _wake(waiter)
        self.lost(reason)


class Inbox:
    """Messages of one stream that wait for their consumer; bounded.

    When it is full, reading from the whole connection pauses, because ttrpc has no flow control
    per stream. A consumer that takes nothing for ``PATIENCE`` seconds loses its stream (``overrun``
    is called) rather than stop all the others for longer.
    """

    def __init__(self, connection: Connection, overrun: Callable[[], None]) -> None:
        self._connection = connection
        self._overrun = overrun
        self._messages: collections.deque[memoryview] = collections.deque()
        self._bytes = 0
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def _full(self) -> bool:
        return len(self._messages) >= _INBOX_MESSAGES or self._bytes >= _INBOX_BYTES

    def put(self, message: memoryview) -> None:
        """Add one message; ignored after the end."""
        if self._ended:
            return
        self._messages.append(message)
        self._bytes += len(message)
        self._wake()
        if self._full and self._alarm is None:
            self._connection.hold(self)
            self._alarm = self._connection.loop.call_later(PATIENCE, self._overrun)

    def end(self, error: Exception | None = None) -> None:
        """Say that no message follows; ``error`` is raised once the queue is empty."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._relax()
            self._wake()

    def drop(self) -> None:
        """Throw everything away: nobody will read it."""
        self._messages.clear()
        self._bytes = 0
        self.end()
        self._relax()

    async def get(self) -> memoryview | None:
        """Return the next message; None after the last; raise the error given to ``end``."""
        while not self._messages:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._messages.popleft()
        self._bytes -= len(message)
        if not self._full:
            self._relax()
        return message

    def _relax(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._connection.release(self)

    def _wake(self) -> None:
        if self._waiter is not None:
            _wake(self._waiter)


def _wake(waiter: asyncio.Future[None], _: object = None) -> None:
    if not waiter.done():
        waiter.set_result(None)
