"""Server and client together: all kinds of call, their ends, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value, StringValue

from shims.core.errors import DeadlineExceeded, ExitCode, Unreachable
from shims.ttrpc.client import Client, Stream
from shims.ttrpc.codes import Code
from shims.ttrpc.envelope import response_head
from shims.ttrpc.errors import LinkClosed, RpcError
from shims.ttrpc.frames import MAX_BODY, FrameType, frame_header
from shims.ttrpc.server import Server
from tests.ttrpc.conftest import SERVICE, Echo

if TYPE_CHECKING:
    from pathlib import Path


async def echo_once(client: Client, text: str = "hello") -> str:
    request = StringValue(value=text)
    answer = await client.unary(SERVICE, "Echo", request, StringValue, timeout=5)
    return str(answer.value)


async def test_unary(client: Client) -> None:
    assert await echo_once(client) == "hello"


async def test_empty_messages_are_messages(client: Client) -> None:
    assert await echo_once(client, "") == ""


async def test_many_at_once(client: Client) -> None:
    answers = await asyncio.gather(*(echo_once(client, str(n)) for n in range(500)))
    assert answers == [str(n) for n in range(500)]


async def test_server_streaming(client: Client) -> None:
    request = Int64Value(value=200)
    async with client.server_streaming(SERVICE, "Count", request, Int64Value, timeout=5) as stream:
        assert [item.value async for item in stream] == list(range(200))


async def test_server_streaming_ends_with_an_error(client: Client) -> None:
    request = Int64Value(value=13)
    async with client.server_streaming(SERVICE, "Count", request, Int64Value, timeout=5) as stream:
        assert [await stream.receive() for _ in range(13)][-1] == Int64Value(value=12)
        with pytest.raises(RpcError, match="unlucky") as caught:
            await stream.receive()
    assert caught.value.code is Code.NOT_FOUND


async def test_client_streaming(client: Client) -> None:
    async with client.client_streaming(SERVICE, "Sum", Int64Value, timeout=5) as stream:
        for number in range(100):
            await stream.send(Int64Value(value=number))
        assert (await stream.finish()).value == sum(range(100))


async def test_bidi(client: Client) -> None:
    async with client.bidi(SERVICE, "Chat", StringValue, timeout=5) as stream:
        for word in ("one", "two"):
            await stream.send(StringValue(value=word))
            answer = await stream.receive()
            assert answer is not None
            assert answer.value == word.upper()
        await stream.close_send()
        assert await stream.receive() is None


async def test_metadata_and_peer_reach_the_handler(client: Client, echo: Echo) -> None:
    metadata = (("k", "1"), ("k", "2"), ("traceparent", "00-ab"))
    await client.unary(SERVICE, "Echo", StringValue(), StringValue, timeout=5, metadata=metadata)
    context = echo.contexts[0]
    assert context.metadata == metadata
    assert context.first("k") == "1"
    assert context.peer is not None
    assert (context.peer.pid, context.peer.uid) == (os.getpid(), os.geteuid())
    remaining = context.remaining()
    assert remaining is not None
    assert 0 < remaining <= 5


async def test_no_deadline(client: Client, echo: Echo) -> None:
    await client.unary(SERVICE, "Echo", StringValue(), StringValue, timeout=None)
    assert echo.contexts[0].deadline is None


async def test_deadline_cancels_the_handler(client: Client, echo: Echo) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        await client.unary(SERVICE, "Block", StringValue(), StringValue, timeout=0.05)
    assert caught.value.exit_code == ExitCode.TIMEOUT
    async with asyncio.timeout(5):
        await echo.cancelled.wait()
    assert await echo_once(client) == "hello"


async def test_a_deadline_that_the_server_noticed_is_a_deadline(client: Client) -> None:
    """Which end notices first is chance, and must make no difference to a caller."""
    with pytest.raises(DeadlineExceeded, match="it took too long") as caught:
        await client.unary(SERVICE, "Fail", StringValue(value="late"), StringValue, timeout=5)
    assert caught.value.exit_code == ExitCode.TIMEOUT
    assert isinstance(caught.value, RpcError)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    request = Int64Value(value=14)
    async with client.server_streaming(SERVICE, "Count", request, Int64Value, timeout=5) as stream:
        with pytest.raises(DeadlineExceeded, match="it took too long"):
            assert len([item async for item in stream]) == 0


async def flood(stream: Stream) -> None:
    while True:
        await stream.send(BytesValue(value=bytes(100_000)))


class StalledClient(Client):
    """Says when the server has stopped taking what it sends."""

    def __init__(self, max_message: int = MAX_BODY) -> None:
        super().__init__(max_message)
        self.stopped = asyncio.Event()

    def congested(self, yes: bool) -> None:
        self.stopped.set()


async def test_deadlines_hold_while_the_server_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    async with await StalledClient.connect(ours) as client, asyncio.timeout(10):
        sending = client.client_streaming(SERVICE, "Sum", Int64Value, timeout=0.5)
        closing = client.client_streaming(SERVICE, "Sum", Int64Value, timeout=0.5)
        async with sending, closing:
            flooding = asyncio.create_task(flood(sending))
            await client.stopped.wait()
            for waiting in flooding, asyncio.create_task(closing.close_send()):
                with pytest.raises(DeadlineExceeded):
                    await waiting
        request = Int64Value(value=1)
        with pytest.raises(DeadlineExceeded):
            async with client.server_streaming(SERVICE, "Count", request, Int64Value, timeout=0.05):
                pytest.fail("the request cannot have been sent")
        with pytest.raises(DeadlineExceeded):
            await client.unary(SERVICE, "Echo", StringValue(), StringValue, timeout=0.05)
        assert len(client._streams) == 0
        assert not client._streaming
    theirs.close()


async def test_a_sender_that_waits_hears_that_the_call_has_ended() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    async with await StalledClient.connect(ours) as client, asyncio.timeout(10):
        async with client.client_streaming(SERVICE, "Sum", Int64Value, timeout=None) as stream:
            flooding = asyncio.create_task(flood(stream))
            await client.stopped.wait()
            body = response_head(0, "", 0)
            answer = frame_header(len(body), 1, FrameType.RESPONSE) + body
            await asyncio.get_running_loop().sock_sendall(theirs, answer)
            with pytest.raises(RpcError, match="this stream has ended") as caught:
                await flooding
            assert caught.value.code is Code.FAILED_PRECONDITION
            assert await stream.finish() == Int64Value()
    theirs.close()


async def test_lost_connection_cancels_the_handler(path: Path, echo: Echo) -> None:
    client = await Client.connect(path)
    call = asyncio.create_task(
        client.unary(SERVICE, "Block", StringValue(), StringValue, timeout=5)
    )
    await echo.started.wait()
    await client.close()
    with pytest.raises(LinkClosed):
        await call
    async with asyncio.timeout(5):
        await echo.cancelled.wait()


async def test_given_up_call_leaves_nothing(client: Client, echo: Echo) -> None:
    call = asyncio.create_task(
        client.unary(SERVICE, "Block", StringValue(), StringValue, timeout=5)
    )
    await echo.started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(client._streams) == 0
    assert not client._unary
    echo.release.set()
    assert await echo_once(client) == "hello"


async def test_errors_have_their_codes(client: Client) -> None:
    with pytest.raises(RpcError, match="there is no such thing") as caught:
        await client.unary(SERVICE, "Fail", StringValue(value="ours"), StringValue, timeout=5)
    assert caught.value.code is Code.NOT_FOUND


async def test_a_bug_in_a_handler_is_internal(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RpcError, match="RuntimeError: boom") as caught:
        await client.unary(SERVICE, "Fail", StringValue(value="boom"), StringValue, timeout=5)
    assert caught.value.code is Code.INTERNAL
    assert "Fail failed" in caplog.text


@pytest.mark.parametrize(
    ("service", "method"), [("nobody.Here", "Echo"), (SERVICE, "Nothing"), ("", "")]
)
async def test_unknown_is_unimplemented(client: Client, service: str, method: str) -> None:
    with pytest.raises(RpcError) as caught:
        await client.unary(service, method, StringValue(), StringValue, timeout=5)
    assert caught.value.code is Code.UNIMPLEMENTED


async def test_undecodable_request(client: Client) -> None:
    class Junk:
        def SerializeToString(self) -> bytes:
            return b"\xff"

    with pytest.raises(RpcError, match="cannot be decoded") as caught:
        await client.unary(SERVICE, "Size", Junk(), BytesValue, timeout=5)
    assert caught.value.code is Code.INVALID_ARGUMENT


async def test_largest_message_passes(client: Client) -> None:
    size = (4 << 20) - 64
    answer = await client.unary(SERVICE, "Size", Int64Value(value=size), BytesValue, timeout=20)
    assert len(answer.value) == size


async def test_too_long_response_is_refused_by_its_sender(client: Client) -> None:
    with pytest.raises(RpcError, match="exceeds the maximum") as caught:
        await client.unary(SERVICE, "Size", Int64Value(value=4 << 20), BytesValue, timeout=20)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert await echo_once(client) == "hello"


async def test_too_long_request_is_refused_by_its_sender(client: Client) -> None:
    with pytest.raises(RpcError, match="exceeds the maximum"):
        await echo_once(client, "x" * (4 << 20))
    request = StringValue(value="x" * (4 << 20))
    with pytest.raises(RpcError, match="exceeds the maximum"):
        async with client.server_streaming(SERVICE, "Count", request, Int64Value, timeout=5):
            pytest.fail("the request cannot have been sent")
    assert len(client._streams) == 0
    assert not client._streaming


async def test_too_long_request_is_refused_by_its_receiver(path: Path) -> None:
    async with await Client.connect(path, max_message=16 << 20) as client:
        with pytest.raises(RpcError, match="exceeds the maximum") as caught:
            await echo_once(client, "x" * (5 << 20))
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert await echo_once(client) == "hello"


async def test_too_many_calls(tmp_path: Path, echo: Echo) -> None:
    ours, theirs = socket.socketpair()
    server = Server(max_streams=3)
    server.add_service(SERVICE, echo.methods())
    serving = asyncio.create_task(server.serve_connection(theirs))
    async with await Client.connect(ours) as client:
        waiting = [
            asyncio.create_task(
                client.unary(SERVICE, "Block", StringValue(), StringValue, timeout=5)
            )
            for _ in range(3)
        ]
        await echo.started.wait()
        with pytest.raises(RpcError, match="3 calls") as caught:
            await echo_once(client)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        echo.release.set()
        await asyncio.gather(*waiting)
        assert await echo_once(client) == "hello"
    await serving


async def test_a_deaf_handler_loses_its_stream_only(client: Client, echo: Echo) -> None:
    async with client.client_streaming(SERVICE, "Deaf", Int64Value, timeout=20) as stream:

        async def flood() -> None:
            for _ in range(1000):
                await stream.send(BytesValue(value=bytes(1000)))
            await stream.finish()

        with pytest.raises(RpcError, match="does not read") as caught:
            await flood()
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert await echo_once(client) == "hello"


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="No such file"):
        await Client.connect(tmp_path / "nobody")


async def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="too long"):
        await Client.connect(tmp_path / ("x" * 120))


async def test_bytes_read_before_belong_to_the_conversation(server: Server) -> None:
    """As after the guest link's preamble: the reader may have taken too much."""
    ours, theirs = socket.socketpair()
    async with await Client.connect(ours) as client:
        call = asyncio.create_task(echo_once(client))
        await asyncio.sleep(0)
        theirs.setblocking(False)
        early = await asyncio.get_running_loop().sock_recv(theirs, 17)
        serving = asyncio.create_task(server.serve_connection(theirs, early))
        assert await call == "hello"
    await serving


async def test_service_names_are_unique(server: Server) -> None:
    with pytest.raises(ValueError, match="already served"):
        server.add_service(SERVICE, {})
