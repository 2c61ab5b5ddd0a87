"""One call at the server: its kind, what its handler may know, and how its answer goes out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from shims.core.errors import ShimError
from shims.ttrpc.codes import Code
from shims.ttrpc.connection import Connection, Inbox
from shims.ttrpc.envelope import Metadata, response_head
from shims.ttrpc.errors import LinkClosed, RpcError, code_of
from shims.ttrpc.frames import FrameType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from shims.ttrpc.streams import Call

__all__ = ["CallKind", "Context", "MessageType", "Method", "Peer", "ServerCall"]

_log = logging.getLogger(__name__)

_NS = 1_000_000_000


class MessageType(Protocol):
    """What we need of a message class; protobuf's classes have it."""

    @staticmethod
    def FromString(data: Any, /) -> Any:
        """Return the message encoded in ``data``."""


class Message(Protocol):
    """What we need of a message."""

    def SerializeToString(self) -> bytes:
        """Return the message's encoding."""


class CallKind(Enum):
    """Which side sends how many messages."""

    UNARY = (False, False)
    SERVER_STREAMING = (False, True)
    CLIENT_STREAMING = (True, False)
    BIDI = (True, True)

    @property
    def client_streams(self) -> bool:
        """Whether the client sends any number of messages."""
        return self.value[0]

    @property
    def server_streams(self) -> bool:
        """Whether the server sends any number of messages."""
        return self.value[1]


class Method(NamedTuple):
    """A method of a service.

    ``handler(argument, context)``, where the argument is the request, or an async iterator of
    requests when the client streams. It is a coroutine function that returns the response, or an
    async generator function that yields responses when the server streams.
    """

    kind: CallKind
    handler: Callable[[Any, Context], Any]
    decode: Callable[[Any], Any]
    encode: Callable[[Any], bytes]

    @classmethod
    def _of(
        cls,
        kind: CallKind,
        handler: Callable[[Any, Context], Any],
        request_type: type[MessageType],
        response_type: type[Message],
    ) -> Self:
        return cls(kind, handler, request_type.FromString, response_type.SerializeToString)

    @classmethod
    def unary(
        cls, handler: Callable[[Any, Context], Any], request_type: Any, response_type: Any
    ) -> Self:
        """One request, one response: ``async def handler(request, context) -> response``."""
        return cls._of(CallKind.UNARY, handler, request_type, response_type)

    @classmethod
    def server_streaming(
        cls, handler: Callable[[Any, Context], Any], request_type: Any, response_type: Any
    ) -> Self:
        """One request, many responses: the handler is an async generator function."""
        return cls._of(CallKind.SERVER_STREAMING, handler, request_type, response_type)

    @classmethod
    def client_streaming(
        cls, handler: Callable[[Any, Context], Any], request_type: Any, response_type: Any
    ) -> Self:
        """Many requests, one response: the first argument is an async iterator."""
        return cls._of(CallKind.CLIENT_STREAMING, handler, request_type, response_type)

    @classmethod
    def bidi(
        cls, handler: Callable[[Any, Context], Any], request_type: Any, response_type: Any
    ) -> Self:
        """Many of both: async iterator in, async generator out."""
        return cls._of(CallKind.BIDI, handler, request_type, response_type)


class Peer(NamedTuple):
    """Who connected, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class Context:
    """What a handler may know about its call, and do with it."""

    __slots__ = ("_emit", "_loop", "deadline", "metadata", "method", "peer", "service")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        call: Call,
        peer: Peer | None,
        deadline: float | None,
        emit: Callable[[Any], Awaitable[None]],
    ) -> None:
        self._loop = loop
        self._emit = emit
        self.service = call.request.service
        self.method = call.request.method
        self.metadata: Metadata = call.request.metadata
        """Pairs as the client sent them."""
        self.peer = peer
        """None when the connection is not a unix socket."""
        self.deadline = deadline
        """In the running loop's time; None without limit."""

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, never negative; None without limit."""
        return None if self.deadline is None else max(0.0, self.deadline - self._loop.time())

    async def write(self, message: Any) -> None:
        """Send one message of a method whose server streams, as ``yield`` in its handler does.

        Waits while the client does not read. Raises RpcError when the call has ended.
        """
        await self._emit(message)

    def first(self, key: str, default: str = "") -> str:
        """Return the first metadata value under ``key``."""
        return next((value for name, value in self.metadata if name == key), default)


class ServerCall:
    """Runs the handler of one call and sends its answer: exactly one last word per call.

    The answer may go out before the handler ends, at its deadline; the call ends with its handler,
    which ``ended`` is told.
    """

    __slots__ = (
        "_alarm", "_connection", "_ended", "_method",
        "answered", "context", "inbox", "stream_id", "task",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        method: Method,
        call: Call,
        peer: Peer | None,
        ended: Callable[[ServerCall], None],
    ) -> None:
        self._connection = connection
        self._method = method
        self._ended = ended
        self._alarm: asyncio.TimerHandle | None = None
        self.answered = False
        """Whether the last word is out, or nobody is left to hear it."""
        self.stream_id = call.stream_id
        loop = connection.loop
        timeout = call.request.timeout_ns / _NS
        deadline = loop.time() + timeout if timeout else None
        self.context = Context(loop, call, peer, deadline, self._emit)
        self.inbox: Inbox | None = None
        payload = call.request.payload
        if method.kind.client_streams:
            self.inbox = Inbox(connection, self._overrun)
            if payload is not None:
                self.inbox.put(payload)
            if not call.client_streams:
                self.inbox.end()
        if self.context.deadline is not None:
            self._alarm = loop.call_at(self.context.deadline, self._late)
        name = f"ttrpc {call.request.service}/{call.request.method}"
        self.task = loop.create_task(self._run(payload), name=name)

    def finish(self, code: Code, message: str) -> None:
        """Answer the call with a status, if it has no answer yet; cancel its handler."""
        if not self.answered:
            self._status(code, message)
            self._stop()

    def cancel(self) -> None:
        """Cancel the handler, and send no answer: there is nobody left to read it."""
        self._close()
        self._stop()

    def _stop(self) -> None:
        # A task that is cancelled before its first step takes no step at all.
        self.task.add_done_callback(self._done)
        self.task.cancel()

    async def _run(self, payload: memoryview | None) -> None:
        try:
            # While the client takes no answers, none are made: many calls fit in few bytes.
            if self._connection.stalled:
                await self._connection.writable()
            if self._method.kind.server_streams:
                await self._stream(payload)
            else:
                await self._answer(payload)
        except asyncio.CancelledError:
            self._status(Code.CANCELLED, "the server gave up the call")
            raise
        except LinkClosed:
            self._close()
        except ShimError as error:
            self._status(code_of(error), str(error))
        except Exception as error:  # the edge of a task: one bad handler must not end the server
            _log.exception("%s/%s failed", self.context.service, self.context.method)
            self._status(Code.INTERNAL, f"{type(error).__name__}: {error}")
        finally:
            self._done()

    def _argument(self, payload: memoryview | None) -> Any:
        if self.inbox is not None:
            return self._requests(self.inbox)
        return self._decode(payload if payload is not None else memoryview(b""))

    def _decode(self, payload: memoryview) -> Any:
        try:
            return self._method.decode(payload)
        except Exception as error:  # each message library has an error class of its own
            text = f"{self.context.method}: the request cannot be decoded: {error}"
            raise RpcError(Code.INVALID_ARGUMENT, text) from error

    async def _requests(self, inbox: Inbox) -> AsyncIterator[Any]:
        while (payload := await inbox.get()) is not None:
            yield self._decode(payload)

    async def _answer(self, payload: memoryview | None) -> None:
        result = self._method.handler(self._argument(payload), self.context)
        del payload
        response = self._method.encode(await result)
        head = response_head(Code.OK, "", len(response))
        self._connection.check_size(len(head) + len(response))
        await self._connection.writable(size=len(response))
        self._last_word(FrameType.RESPONSE, 0, head, response)

    async def _stream(self, payload: memoryview | None) -> None:
        handler = self._method.handler(self._argument(payload), self.context)
        async with contextlib.aclosing(handler) as items:
            async for item in items:
                await self._emit(item)
        await self._connection.writable()
        if not self.answered:
            self._connection.send_end(self.stream_id)
            self._close()

    async def _emit(self, item: Any) -> None:
        message = self._method.encode(item)
        self._connection.check_size(len(message))
        await self._connection.writable(size=len(message))
        if self.answered:
            raise RpcError(Code.CANCELLED, "this call has ended")
        self._connection.send(self.stream_id, FrameType.DATA, 0, b"", message)

    def _status(self, code: Code, message: str) -> None:
        self._last_word(FrameType.RESPONSE, 0, response_head(code, message, 0))

    def _last_word(self, kind: FrameType, flags: int, head: bytes, payload: bytes = b"") -> None:
        if not self.answered:
            self._connection.send(self.stream_id, kind, flags, head, payload)
            self._close()

    def _close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self.inbox is not None:
            self.inbox.drop()
        self.answered = True

    def _done(self, _: object = None) -> None:
        """Take note that the handler has ended. May be repeated."""
        self._close()
        self._ended(self)

    def _late(self) -> None:
        self.finish(Code.DEADLINE_EXCEEDED, "context deadline exceeded")

    def _overrun(self) -> None:
        self.finish(Code.RESOURCE_EXHAUSTED, "the handler does not read its messages")
