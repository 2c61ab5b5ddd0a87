"""The client on asyncio.

::

    async with await Client.connect("/run/shim.sock") as client:
        state = await client.unary(SERVICE, "State", request, StateResponse, timeout=2)
        async with client.server_streaming(SERVICE, "Watch", request, Event, timeout=60) as events:
            async for event in events: ...

A call fails with RpcError when the server says so, with DeadlineExceeded when its time is over,
whichever end notices first, and with LinkClosed when the connection ends. A call that is given up
(deadline, cancellation) is forgotten here at once; ttrpc has no way to tell the server, which runs
into the deadline itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any, Self

from shims.core.errors import DeadlineExceeded, Unreachable
from shims.ttrpc.codes import Code, code_from_number
from shims.ttrpc.connection import Connection, Inbox
from shims.ttrpc.envelope import request_head
from shims.ttrpc.errors import LinkClosed, RpcError, error_of
from shims.ttrpc.frames import MAX_BODY, Flag, Frame, FrameType
from shims.ttrpc.streams import Answer, ClientStreams, Closed, Message, Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from shims.ttrpc.envelope import Response

__all__ = ["Client", "Stream"]

_NS = 1_000_000_000
CONNECT_TIMEOUT = 10.0


class Client(Connection):
    """One connection and the calls on it. Make one with ``connect``.

    ``closed`` is an event that is set once the connection has ended.
    """

    def __init__(self, max_message: int = MAX_BODY) -> None:
        super().__init__(max_message)
        self._streams = ClientStreams()
        self._unary: dict[int, asyncio.Future[Response]] = {}
        self._streaming: dict[int, Stream] = {}

    @classmethod
    async def connect(
        cls,
        target: str | os.PathLike[str] | socket.socket,
        *,
        received: bytes = b"",
        max_message: int = MAX_BODY,
        timeout: float = CONNECT_TIMEOUT,
    ) -> Self:
        """Return a client on a unix socket's path or on a connected stream socket.

        ``received`` are bytes that the caller has read from the socket and that belong to the
        conversation. Owns the socket. Raises Unreachable when nobody listens.
        """
        loop = asyncio.get_running_loop()
        client = cls(max_message)
        if isinstance(target, socket.socket):
            target.setblocking(False)
            await loop.connect_accepted_socket(lambda: client, target)
        else:
            path = os.fspath(target)
            try:
                async with asyncio.timeout(timeout):
                    await loop.create_unix_connection(lambda: client, path)
            except OSError as error:  # TimeoutError included
                # Some have a text only, as for a path that is too long.
                text = error.strerror or str(error) or "no answer"
                raise Unreachable(f"{path}: {text}") from error
        if received:
            client.received(received)
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in progress fail with LinkClosed. May be repeated."""
        self.abort()
        if self._transport is not None:
            await self.closed.wait()

    async def unary(
        self,
        service: str,
        method: str,
        request: Any,
        response_type: Any,
        *,
        timeout: float | None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> Any:
        """Return the response, of ``response_type``; ``timeout`` in seconds, None without limit."""
        stream_id = 0
        answer: asyncio.Future[Response] = self.loop.create_future()
        alarm: asyncio.TimerHandle | None = None
        if timeout is not None:
            alarm = self.loop.call_later(timeout, _late, answer, service, method, timeout)
        try:
            await self.writable(answer)
            if not answer.done():
                payload = request.SerializeToString()
                stream_id = self._request(0, service, method, payload, timeout, metadata)
                self._unary[stream_id] = answer
            response = await answer
        finally:
            if alarm is not None:
                alarm.cancel()
            self._unary.pop(stream_id, None)
            self._streams.finish(stream_id)
        return _unpack(response, response_type)

    def server_streaming(
        self,
        service: str,
        method: str,
        request: Any,
        response_type: Any,
        *,
        timeout: float | None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> Stream:
        """Return a stream that sends ``request`` and yields the responses."""
        stream = Stream(self, service, method, response_type, timeout, tuple(metadata))
        stream.first = request.SerializeToString()
        return stream

    def client_streaming(
        self,
        service: str,
        method: str,
        response_type: Any,
        *,
        timeout: float | None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> Stream:
        """Return a stream to ``send`` on; ``finish`` returns the one response."""
        return Stream(self, service, method, response_type, timeout, tuple(metadata))

    bidi = client_streaming
    """Return a stream to ``send`` on and to iterate over."""

    # What happens on the connection.

    def frame_received(self, frame: Frame) -> None:
        for event in self._streams.receive(frame):
            stream_id = event.stream_id
            if (answer := self._unary.get(stream_id)) is not None:
                if not answer.done():
                    _settle(answer, event)
            elif (stream := self._streaming.get(stream_id)) is not None:
                stream.event(event)

    def lost(self, reason: LinkClosed) -> None:
        for answer in self._unary.values():
            if not answer.done():
                answer.set_exception(LinkClosed(reason.message))
        for stream in tuple(self._streaming.values()):
            stream.fail(LinkClosed(reason.message))

    # For streams.

    def begin(self, stream: Stream, flags: int) -> int:
        """Open a stream with its request; the caller has waited until we are writable."""
        stream_id = self._request(
            flags, stream.service, stream.method, stream.first, stream.timeout, stream.metadata
        )
        self._streaming[stream_id] = stream
        return stream_id

    def forget(self, stream_id: int) -> None:
        """Drop what still comes on a stream."""
        self._streaming.pop(stream_id, None)
        self._streams.finish(stream_id)

    def _request(
        self,
        flags: int,
        service: str,
        method: str,
        payload: bytes | None,
        timeout: float | None,
        metadata: Iterable[tuple[str, str]],
    ) -> int:
        """Send a request, if it may be sent at all, and return its stream's id."""
        size = None if payload is None else len(payload)
        timeout_ns = 0 if timeout is None else max(1, int(timeout * _NS))
        head = request_head(service, method, size, timeout_ns, metadata)
        self.check_size(len(head) + (size or 0))
        if (stream_id := self._streams.open()) is None:
            raise LinkClosed("the connection has used up its stream ids", hint="connect again")
        self.send(stream_id, FrameType.REQUEST, flags, head, payload or b"")
        return stream_id


class Stream:
    """A call in which one side or both send many messages. Use it with ``async with``.

    Leaving the block gives the call up; the server then sees the end of our messages.
    """

    def __init__(
        self,
        client: Client,
        service: str,
        method: str,
        response_type: Any,
        timeout: float | None,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        self.service = service
        self.method = method
        self.timeout = timeout
        self.metadata = metadata
        self.first: bytes | None = None
        """The request, when there is exactly one."""
        self._client = client
        self._response_type = response_type
        self._inbox = Inbox(client, self._overrun)
        self._stream_id = 0
        self._sending = False
        self._over: asyncio.Future[None] = client.loop.create_future()
        self._answer: Response | None = None
        self._error: Exception | None = None
        self._alarm: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        if self.timeout is not None:
            self._alarm = self._client.loop.call_later(self.timeout, self._late)
        flags = Flag.REMOTE_OPEN if self.first is None else Flag.REMOTE_CLOSED
        try:
            await self._until_writable()
            self._stream_id = self._client.begin(self, flags)
        except BaseException:
            self._end()
            raise
        self._sending = self.first is None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sending:
            self._client.send_end(self._stream_id)
        self._end()
        self._inbox.drop()

    async def send(self, message: Any) -> None:
        """Send one message; waits while the server does not read.

        Raises the call's error when it has failed, and RpcError (FAILED_PRECONDITION) when the
        server has ended the stream without one: reading tells how.
        """
        if not self._sending:
            raise self._ended()
        data = message.SerializeToString()
        self._client.check_size(len(data))
        await self._client.writable(self._over)
        if not self._sending:
            raise self._ended()
        self._client.send(self._stream_id, FrameType.DATA, 0, b"", data)

    async def close_send(self) -> None:
        """Say that no further message comes from us. May be repeated."""
        if not self._sending:
            return
        await self._until_writable()
        if self._sending:
            self._sending = False
            self._client.send_end(self._stream_id)

    def _ended(self) -> Exception:
        return self._error or RpcError(Code.FAILED_PRECONDITION, "this stream has ended")

    async def _until_writable(self) -> None:
        """Wait until the server takes data; raise the call's error if it fails before."""
        await self._client.writable(self._over)
        if self._error is not None:
            raise self._error

    async def finish(self) -> Any:
        """Close our side and return the one response of a client-streaming call."""
        await self.close_send()
        return await self.response()

    async def response(self) -> Any:
        """Return the one response of a client-streaming call, which may come at any time."""
        while await self._inbox.get() is not None:
            pass
        if self._answer is None:
            raise RpcError(Code.INTERNAL, "the server ended the stream without a response")
        return _unpack(self._answer, self._response_type)

    async def receive(self) -> Any | None:
        """Return the next message; None after the last."""
        payload = await self._inbox.get()
        return None if payload is None else _decode(payload, self._response_type)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.receive()) is not None:
            yield message

    def event(self, event: Message | Answer | Closed | Refusal) -> None:
        """Act on what came from the server."""
        match event:
            case Message():
                self._inbox.put(event.payload)
            case Closed():
                self._end()
                self._inbox.end()
            case Refusal():
                self.fail(error_of(event.code, event.message))
            case Answer():
                self._last(event.response)

    def _last(self, response: Response) -> None:
        if response.code:
            self.fail(error_of(code_from_number(response.code), response.message))
            return
        self._answer = response
        self._end()
        self._inbox.end()

    def fail(self, error: Exception) -> None:
        """End the call with an error, which reading raises after the last message."""
        if self._over.done():
            return
        self._error = error
        self._end()
        self._inbox.end(error)

    def give_up(self, error: Exception) -> None:
        """End the call from our side; reading raises ``error``. Ignored when it has ended."""
        if self._sending:
            self._client.send_end(self._stream_id)
        self.fail(error)

    def _end(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._sending = False
        if not self._over.done():
            self._over.set_result(None)
        self._client.forget(self._stream_id)

    def _late(self) -> None:
        self.fail(_deadline(self.service, self.method, self.timeout or 0.0))

    def _overrun(self) -> None:
        self.fail(RpcError(Code.RESOURCE_EXHAUSTED, "messages of this stream were not read"))


def _settle(answer: asyncio.Future[Response], event: Message | Answer | Closed | Refusal) -> None:
    """Give the waiter of a unary call its answer, or the reason why there is none."""
    match event:
        case Answer():
            answer.set_result(event.response)
        case Refusal():
            answer.set_exception(error_of(event.code, event.message))
        case _:
            answer.set_exception(RpcError(Code.INTERNAL, "a unary call was answered by a stream"))


def _unpack(response: Response, response_type: Any) -> Any:
    if response.code:
        raise error_of(code_from_number(response.code), response.message)
    return _decode(response.payload, response_type)


def _decode(payload: memoryview, response_type: Any) -> Any:
    try:
        return response_type.FromString(payload)
    except Exception as error:  # each message library has an error class of its own
        raise RpcError(Code.INTERNAL, f"the response cannot be decoded: {error}") from error


def _deadline(service: str, method: str, timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"{service}/{method}: no answer within {timeout:g} s")


def _late(answer: asyncio.Future[Response], service: str, method: str, timeout: float) -> None:
    if not answer.done():
        answer.set_exception(_deadline(service, method, timeout))
