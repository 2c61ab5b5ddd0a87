"""What the server owes itself: it ends in bounded time, and misbehaving peers cost little."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value, StringValue

from shims.core.errors import DeadlineExceeded
from shims.ttrpc import connection
from shims.ttrpc import server as server_module
from shims.ttrpc.client import Client
from shims.ttrpc.codes import Code
from shims.ttrpc.envelope import request_head
from shims.ttrpc.errors import LinkClosed, RpcError
from shims.ttrpc.frames import Frame, FrameReader, FrameType, frame_header
from shims.ttrpc.server import Context, Method, Server
from tests.ttrpc.conftest import SERVICE, Echo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


def request_frame(stream_id: int, method: str, payload: bytes) -> bytes:
    body = request_head(SERVICE, method, len(payload)) + payload
    return frame_header(len(body), stream_id, FrameType.REQUEST) + body


async def echo_once(client: Client, text: str = "hello") -> str:
    request = StringValue(value=text)
    answer = await client.unary(SERVICE, "Echo", request, StringValue, timeout=5)
    return str(answer.value)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that a few turns of the loop bring about."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it does not come about")


@asynccontextmanager
async def serving(server: Server, received: bytes = b"") -> AsyncIterator[socket.socket]:
    """Serve one connection and give its other end, which does nothing by itself."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    task = asyncio.create_task(server.serve_connection(theirs, received))
    with ours:
        yield ours
    async with asyncio.timeout(5):
        await task


async def test_drain_waits_for_running_calls(server: Server, client: Client, echo: Echo) -> None:
    call = asyncio.create_task(
        client.unary(SERVICE, "Block", StringValue(value="kept"), StringValue, timeout=5)
    )
    await echo.started.wait()
    draining = asyncio.create_task(server.drain(timeout=5))
    await asyncio.sleep(0)
    with pytest.raises(RpcError) as caught:
        await echo_once(client)
    assert caught.value.code is Code.UNAVAILABLE
    assert not draining.done()
    echo.release.set()
    assert (await call).value == "kept"
    await draining
    await asyncio.wait_for(client.closed.wait(), 5)


async def test_drain_is_bounded(server: Server, client: Client, echo: Echo) -> None:
    call = asyncio.create_task(
        client.unary(SERVICE, "Block", StringValue(), StringValue, timeout=5)
    )
    await echo.started.wait()
    await server.drain(timeout=0.05)
    with pytest.raises(RpcError, match="shutting down") as caught:
        await call
    assert caught.value.code is Code.UNAVAILABLE
    await asyncio.wait_for(echo.cancelled.wait(), 5)


LONG = 4_000_000
LONG_ANSWER = request_frame(1, "Size", Int64Value(value=LONG).SerializeToString())
"""Asks for an answer that does not go out at once."""


async def test_drain_cuts_off_who_does_not_read(server: Server) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    task = asyncio.create_task(server.serve_connection(theirs, LONG_ANSWER))
    with ours:
        async with asyncio.timeout(5):
            await asyncio.get_running_loop().sock_recv(ours, 1)  # the answer is under way
            await server.drain(timeout=0.1)
            await task


async def test_drain_lets_the_last_answers_out(server: Server) -> None:
    """Whoever reads gets all of it."""
    loop = asyncio.get_running_loop()
    async with serving(server, LONG_ANSWER) as ours, asyncio.timeout(5):
        size = len(await loop.sock_recv(ours, 1))
        draining = asyncio.create_task(server.drain(timeout=4))
        while data := await loop.sock_recv(ours, 1 << 20):
            size += len(data)
        await draining
    assert size > LONG


class Stubborn:
    """A handler that does not care about its cancellation."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __call__(self, request: StringValue, context: Context) -> StringValue:
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                continue
        return request


async def test_a_call_lasts_as_long_as_its_handler() -> None:
    stubborn = Stubborn()
    server = Server(max_streams=2)
    server.add_service(SERVICE, {"Stub": Method.unary(stubborn, StringValue, StringValue)})
    async with serving(server) as ours, await Client.connect(ours) as client:

        async def call(timeout: float) -> object:
            return await client.unary(SERVICE, "Stub", StringValue(), StringValue, timeout=timeout)

        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await call(0.01)
        with pytest.raises(RpcError, match="2 calls") as caught:
            await call(5)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert server.calls == 2
    draining = asyncio.create_task(server.drain(timeout=5))
    await asyncio.wait((draining,), timeout=0.05)
    assert server.calls == 2  # their connection is closed, and they run on
    assert not draining.done()
    stubborn.release.set()
    await draining
    assert server.calls == 0


@pytest.mark.parametrize("identity", ["geteuid", "getegid"])
async def test_other_users_are_refused(
    identity: str, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, identity, lambda: 12345)
    async with await Client.connect(path) as client:
        with pytest.raises(LinkClosed):
            await echo_once(client)
    assert "refused a connection" in caplog.text


async def test_early_bytes_of_a_refused_user_are_dropped(
    server: Server, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = request_frame(1, "Echo", b"")
    async with serving(server, early) as ours, asyncio.timeout(5):
        assert await asyncio.get_running_loop().sock_recv(ours, 100)
    assert len(echo.contexts) == 1
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    async with serving(server, early) as ours, asyncio.timeout(5):
        assert not await asyncio.get_running_loop().sock_recv(ours, 100)
    await server.drain(timeout=5)
    assert len(echo.contexts) == 1


async def test_no_answers_are_made_while_the_client_takes_none() -> None:
    begun: list[int] = []

    async def large(request: Int64Value, context: Context) -> BytesValue:
        begun.append(request.value)
        return BytesValue(value=bytes(300_000))

    server = Server()
    server.add_service(SERVICE, {"Large": Method.unary(large, Int64Value, BytesValue)})
    numbers = list(range(1, 101))
    flood = b"".join(
        request_frame(2 * number - 1, "Large", Int64Value(value=number).SerializeToString())
        for number in numbers
    )
    loop = asyncio.get_running_loop()
    async with serving(server, flood) as ours, asyncio.timeout(10):
        data = await loop.sock_recv(ours, 1)
        assert begun == [1]
        assert server.calls == 99
        reader = FrameReader()
        answers: list[Frame] = []
        while len(answers) < len(numbers):
            answers += reader.feed(data)
            if len(answers) < len(numbers):
                data = await loop.sock_recv(ours, 1 << 20)
    assert begun == numbers
    assert {answer.stream_id for answer in answers} == {2 * number - 1 for number in numbers}


async def test_answers_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_WAITING", 1_000_000)
    release = asyncio.Event()
    begun: list[Context] = []

    async def large(request: Int64Value, context: Context) -> BytesValue:
        begun.append(context)
        await release.wait()
        return BytesValue(value=bytes(400_000))

    server = Server()
    server.add_service(SERVICE, {"Large": Method.unary(large, Int64Value, BytesValue)})
    async with serving(server) as ours, await Client.connect(ours) as client, asyncio.timeout(10):
        calls = [
            asyncio.create_task(client.unary(SERVICE, "Large", Int64Value(), BytesValue, timeout=5))
            for _ in range(10)
        ]
        await until(lambda: len(begun) == 10)
        client.hold("the test")
        release.set()
        await until(lambda: server.calls == 2)
        client.release("the test")
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, RpcError)]
    assert [result.code for result in refused] == [Code.RESOURCE_EXHAUSTED] * 7
    assert len([result for result in results if isinstance(result, BytesValue)]) == 3


EVEN_ID = frame_header(0, 2, FrameType.REQUEST)
BREACHES = {
    "even ids": EVEN_ID,
    "ids used again": request_frame(1, "Nothing", b""),
    "requests that cannot be read": frame_header(1, 3, FrameType.REQUEST) + b"\xff",
    "data out of nowhere": frame_header(0, 9, FrameType.DATA),
}


@pytest.mark.parametrize("what", BREACHES)
async def test_who_breaks_the_rules_again_and_again_is_cut_off(
    what: str, server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    async with serving(server) as ours, asyncio.timeout(5):
        await loop.sock_sendall(ours, BREACHES[what] * 1000)
        answers: list[Frame] = []
        reader = FrameReader()
        while data := await received(ours):
            answers += reader.feed(data)
    assert len(answers) in (16, 17)
    assert "breaks the rules" in caplog.text
    assert await echo_once(client) == "hello"


async def received(sock: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
    except ConnectionResetError:  # closed while bytes of ours were not read yet
        return b""


async def test_who_breaks_the_rules_now_and_then_is_not(server: Server, echo: Echo) -> None:
    loop = asyncio.get_running_loop()
    requests = [request_frame(number, "Echo", b"") for number in range(1, 200, 2)]
    late = b"".join(frame_header(0, number, FrameType.DATA) for number in range(1, 200, 2))
    async with serving(server) as ours, asyncio.timeout(5):
        await loop.sock_sendall(ours, b"".join(EVEN_ID * 15 + request for request in requests))
        await answers_of(ours, 1600)
        await loop.sock_sendall(ours, late + request_frame(201, "Echo", b""))
        await answers_of(ours, 101)
    assert len(echo.contexts) == 101


async def answers_of(sock: socket.socket, count: int) -> list[Frame]:
    """Return the next ``count`` frames."""
    reader = FrameReader()
    frames: list[Frame] = []
    while len(frames) < count:
        data = await received(sock)
        assert data, "the connection is closed"
        frames += reader.feed(data)
    return frames


@pytest.mark.parametrize(
    "begun", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", frame_header(4 << 20, 1, 1) + b"x", b"\x00"]
)
async def test_half_a_frame_and_silence_ends_the_connection(
    begun: bytes, server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "STALL", 0.05)
    loop = asyncio.get_running_loop()
    async with serving(server) as ours, serving(server) as idle, asyncio.timeout(5):
        await loop.sock_sendall(ours, begun)
        assert not await received(ours)
        await loop.sock_sendall(idle, request_frame(1, "Echo", b""))
        assert await received(idle)
    assert await echo_once(client) == "hello"


async def test_our_own_silence_is_not_the_clients(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While we do not read, the client cannot go on."""
    checked: list[int] = []
    thrice = asyncio.Event()
    check = server_module._ServerConnection._check_stall

    def watch(connection: server_module._ServerConnection, reads: int) -> None:
        checked.append(reads)
        if len(checked) == 3:
            thrice.set()
        check(connection, reads)

    monkeypatch.setattr(server_module._ServerConnection, "_check_stall", watch)
    monkeypatch.setattr(server_module, "STALL", 0.05)
    loop = asyncio.get_running_loop()
    frame = request_frame(1, "Echo", b"")
    async with serving(server) as ours, asyncio.timeout(5):
        await loop.sock_sendall(ours, frame[:5])
        await until(lambda: bool(server._connections))
        (connection,) = server._connections
        await until(lambda: connection._stall is not None)
        connection.hold("the test")
        await thrice.wait()
        connection.release("the test")
        await loop.sock_sendall(ours, frame[5:])
        assert await received(ours)


async def test_connections_are_limited(caplog: pytest.LogCaptureFixture, echo: Echo) -> None:
    server = Server(max_connections=2)
    server.add_service(SERVICE, echo.methods())
    async with serving(server) as first, serving(server) as second:
        async with await Client.connect(first) as one, await Client.connect(second) as two:
            assert await echo_once(one) == await echo_once(two) == "hello"
            async with serving(server) as third, asyncio.timeout(5):
                assert not await received(third)
            assert "refused a connection: there are 2" in caplog.text
            assert await echo_once(one) == "hello"
    async with serving(server) as again, await Client.connect(again) as client:
        assert await echo_once(client) == "hello"
