"""Run code that grpcio-tools generated on ttrpc, unchanged.

::

    add_TaskServicer_to_server(MyTask(), ServicerAdapter(server))
    stub = TaskStub(StubAdapter(client))
    state = await stub.State(StateRequest(id="c1"), timeout=2)

Servicers and stubs are those of ``grpc.aio``: coroutine methods, async generators, and calls that
are awaited or iterated; a method that streams may also be a coroutine that writes to its context.
grpc itself is not imported here; only the generated module needs it.
Differences: errors are shims' own, such as RpcError, not ``grpc.aio.AioRpcError``; there are no
trailing metadata, because ttrpc has none; a context has no ``read``, so requests are iterated.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Self

from shims.ttrpc.call import CallKind, Context, Method
from shims.ttrpc.codes import Code, code_from_number
from shims.ttrpc.errors import RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shims.ttrpc.client import Client, Stream
    from shims.ttrpc.envelope import Metadata
    from shims.ttrpc.server import Server

__all__ = ["ServicerAdapter", "StubAdapter"]

Requests = AsyncIterable[Any] | Iterable[Any]


class ServicerAdapter:
    """Takes the place of a ``grpc.aio.Server`` in ``add_*Servicer_to_server``."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Iterable[object]) -> None:
        """Do nothing: generated code also registers the same methods by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Serve the methods of one service."""
        methods = {name: _method(handler) for name, handler in handlers.items()}
        self._server.add_service(service, methods)


def _method(handler: Any) -> Method:
    """Return our form of a ``grpc.RpcMethodHandler``."""
    kind = CallKind((bool(handler.request_streaming), bool(handler.response_streaming)))
    behaviour = {
        CallKind.UNARY: handler.unary_unary,
        CallKind.SERVER_STREAMING: handler.unary_stream,
        CallKind.CLIENT_STREAMING: handler.stream_unary,
        CallKind.BIDI: handler.stream_stream,
    }[kind]
    run = _streaming(behaviour) if kind.server_streams else _single(behaviour)
    decode = handler.request_deserializer
    # Generated decoders insist on bytes or a view, which is what they get.
    return Method(kind, run, decode, handler.response_serializer)


def _single(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Context], Any]:
    async def run(argument: Any, context: Context) -> Any:
        with _adapted(context) as adapted:
            result = behaviour(argument, adapted)
            if inspect.isawaitable(result):
                result = await result
        return result

    return run


def _streaming(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Context], Any]:
    async def run(argument: Any, context: Context) -> AsyncIterator[Any]:
        with _adapted(context) as adapted:
            result = behaviour(argument, adapted)
            if inspect.isawaitable(result):
                await result  # it writes to the context
                return
            async for item in result:
                yield item

    return run


@contextmanager
def _adapted(context: Context) -> Iterator[ServicerContext]:
    """Give a servicer's method its context; raise the status that it ends with, unless it is OK."""
    adapted = ServicerContext(context)
    try:
        yield adapted
    except NotImplementedError as error:  # what a generated base class raises
        adapted.check()
        raise RpcError(Code.UNIMPLEMENTED, str(error)) from error
    adapted.check()


class ServicerContext:
    """What a servicer's method sees as its context: the part of grpc's that ttrpc can keep."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._code = Code.OK
        self._details = ""

    async def abort(self, code: Any, details: str = "", trailing_metadata: object = ()) -> NoReturn:
        """End the call with this status."""
        raise RpcError(_code(code), details)

    def set_code(self, code: Any) -> None:
        """Make the call end with this status."""
        self._code = _code(code)

    def set_details(self, details: str) -> None:
        """Set the text that goes with ``set_code``."""
        self._details = details

    def code(self) -> Code:
        """Return the status set so far."""
        return self._code

    def details(self) -> str:
        """Return the text set so far."""
        return self._details

    def invocation_metadata(self) -> Metadata:
        """Return the client's metadata as pairs."""
        return self._context.metadata

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline; None without one."""
        return self._context.remaining()

    def peer(self) -> str:
        """Return who called, in grpc's form."""
        peer = self._context.peer
        return f"unix:pid={peer.pid},uid={peer.uid}" if peer else "unknown"

    async def write(self, message: Any) -> None:
        """Send one response of a method that streams them."""
        await self._context.write(message)

    async def send_initial_metadata(self, metadata: object) -> None:
        """Do nothing: ttrpc answers carry no metadata."""

    def set_trailing_metadata(self, metadata: object) -> None:
        """Do nothing: ttrpc answers carry no metadata."""

    def check(self) -> None:
        """Raise RpcError when the method set a status other than OK."""
        if self._code is not Code.OK:
            raise RpcError(self._code, self._details)


def _code(code: Any) -> Code:
    """Return our code for a ``grpc.StatusCode``, whose value is (number, text), or for a number."""
    value = getattr(code, "value", code)
    return code_from_number(value[0] if isinstance(value, tuple) else int(value))


class StubAdapter:
    """Takes the place of a ``grpc.aio.Channel`` in a generated stub."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def unary_unary(self, path: str, *coders: Any, **options: Any) -> Callable[..., Any]:
        """Return a callable: ``await call(request, timeout=, metadata=)``."""
        service, method, encode, decode = _target(path, *coders, **options)

        async def call(
            request: Any,
            *,
            timeout: float | None = None,
            metadata: Metadata | None = None,
            **_: object,
        ) -> Any:
            return await self._client.unary(
                service, method, _Encoded(encode(request)), decode,
                timeout=timeout, metadata=metadata or (),
            )  # fmt: skip

        return call

    def unary_stream(self, path: str, *coders: Any, **options: Any) -> Callable[..., Any]:
        """Return a callable whose result is iterated with ``async for``."""
        service, method, encode, decode = _target(path, *coders, **options)

        def call(
            request: Any,
            *,
            timeout: float | None = None,
            metadata: Metadata | None = None,
            **_: object,
        ) -> AsyncIterator[Any]:
            stream = self._client.server_streaming(
                service, method, _Encoded(encode(request)), decode,
                timeout=timeout, metadata=metadata or (),
            )  # fmt: skip
            return _iterate(stream)

        return call

    def stream_unary(self, path: str, *coders: Any, **options: Any) -> Callable[..., Any]:
        """Return a callable: ``await call(requests)`` with an iterable, async or not."""
        service, method, encode, decode = _target(path, *coders, **options)

        async def call(
            requests: Requests,
            *,
            timeout: float | None = None,
            metadata: Metadata | None = None,
            **_: object,
        ) -> Any:
            stream = self._client.client_streaming(
                service, method, decode, timeout=timeout, metadata=metadata or ()
            )
            async with stream, _sending(stream, encode, requests):
                return await stream.response()

        return call

    def stream_stream(self, path: str, *coders: Any, **options: Any) -> Callable[..., BidiCall]:
        """Return a callable whose result sends, when given, an iterable, and is iterated."""
        service, method, encode, decode = _target(path, *coders, **options)

        def call(
            requests: Requests | None = None,
            *,
            timeout: float | None = None,
            metadata: Metadata | None = None,
            **_: object,
        ) -> BidiCall:
            stream = self._client.bidi(
                service, method, decode, timeout=timeout, metadata=metadata or ()
            )
            return BidiCall(stream, encode, requests)

        return call


class BidiCall:
    """One bidirectional call: ``async for`` with an iterable of requests, else read and write."""

    def __init__(
        self, stream: Stream, encode: Callable[[Any], bytes], requests: Requests | None
    ) -> None:
        self._stream = stream
        self._encode = encode
        self._requests = requests

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stream.__aexit__(*error)

    async def write(self, request: Any) -> None:
        """Send one request; inside ``async with``."""
        await self._stream.send(_Encoded(self._encode(request)))

    async def done_writing(self) -> None:
        """Say that no further request follows."""
        await self._stream.close_send()

    async def read(self) -> Any | None:
        """Return the next response; None after the last."""
        return await self._stream.receive()

    async def __aiter__(self) -> AsyncIterator[Any]:
        requests = () if self._requests is None else self._requests
        async with self, _sending(self._stream, self._encode, requests):
            while (response := await self.read()) is not None:
                yield response


@asynccontextmanager
async def _sending(
    stream: Stream, encode: Callable[[Any], bytes], requests: Requests
) -> AsyncIterator[None]:
    """Send ``requests`` inside the block; what is left of them at its end is not wanted any more.

    The server may end the call at any time, whatever the iterable is waiting for just then.
    """
    sender = asyncio.create_task(_send_all(stream, encode, requests), name="ttrpc requests")
    try:
        yield
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


async def _send_all(stream: Stream, encode: Callable[[Any], bytes], requests: Requests) -> None:
    try:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                await stream.send(_Encoded(encode(request)))
        else:
            for request in requests:
                await stream.send(_Encoded(encode(request)))
        await stream.close_send()
    except Exception as error:  # of the iterable, for whoever reads; the call's own came before
        stream.give_up(error)


class _Encoded:
    """A message that is encoded already."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:
        return self._data


class _Decoder:
    """A decoding function in the place of a message class."""

    __slots__ = ("FromString",)

    def __init__(self, decode: Callable[[Any], Any]) -> None:
        self.FromString = decode


def _target(
    path: str,
    request_serializer: Callable[[Any], bytes],
    response_deserializer: Callable[[Any], Any],
    **_: object,
) -> tuple[str, str, Callable[[Any], bytes], _Decoder]:
    """Split "/package.Service/Method" and take the coders that a stub passes."""
    service, _slash, method = path.removeprefix("/").rpartition("/")
    return service, method, request_serializer, _Decoder(response_deserializer)


async def _iterate(stream: Stream) -> AsyncIterator[Any]:
    async with stream:
        while (message := await stream.receive()) is not None:
            yield message
