"""The original Go implementation as the peer, in both directions."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value, StringValue

from shims.core.errors import DeadlineExceeded
from shims.ttrpc.client import Client
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.ttrpc.conftest import SERVICE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.go, pytest.mark.timeout(300)]

SOURCE = Path(__file__).parent / "gopeer"
CHECKS = 13


@pytest.fixture(scope="module")
def gopeer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program in gopeer/, built from the versions that its go.sum pins."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed")
    program = tmp_path_factory.mktemp("go") / "gopeer"
    built = subprocess.run(
        [go, "build", "-mod=readonly", "-o", program, "."],
        cwd=SOURCE,
        env=os.environ | {"GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if built.returncode != 0:
        if "dial tcp" in built.stderr or "requires go" in built.stderr:
            pytest.skip(f"the Go peer cannot be built here: {built.stderr.splitlines()[-1]}")
        pytest.fail(built.stderr)
    return program


@pytest.fixture
async def go_server(gopeer: Path, tmp_path: Path) -> AsyncIterator[Client]:
    """Return a client of ours that is connected to a Go server."""
    path = tmp_path / "go.sock"
    process = await asyncio.create_subprocess_exec(
        gopeer, "serve", path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"ready\n"
    async with await Client.connect(path) as client:
        yield client
    process.stdin.close()
    async with asyncio.timeout(20):
        assert await process.wait() == 0


async def test_go_client_calls_us(gopeer: Path, path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        gopeer, "call", path, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    lines = out.decode().splitlines()
    assert [line for line in lines if not line.startswith("ok ")] == []
    assert len(lines) == CHECKS
    assert process.returncode == 0


async def test_unary(go_server: Client) -> None:
    async def once(text: str) -> str:
        request = StringValue(value=text)
        answer = await go_server.unary(SERVICE, "Echo", request, StringValue, timeout=10)
        return str(answer.value)

    words = [str(number) for number in range(200)] + [""]
    assert await asyncio.gather(*(once(word) for word in words)) == words


async def test_metadata(go_server: Client) -> None:
    answer = await go_server.unary(
        SERVICE,
        "Echo",
        StringValue(value="x"),
        StringValue,
        timeout=10,
        metadata=(("answer-with", "metadata"),),
    )
    assert answer.value == "metadata"


async def test_deadline(go_server: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        await go_server.unary(SERVICE, "Block", StringValue(), StringValue, timeout=0.05)


@pytest.mark.parametrize(
    ("method", "code"), [("Fail", Code.NOT_FOUND), ("Nothing", Code.UNIMPLEMENTED)]
)
async def test_status(go_server: Client, method: str, code: Code) -> None:
    with pytest.raises(RpcError) as caught:
        await go_server.unary(SERVICE, method, StringValue(), StringValue, timeout=10)
    assert caught.value.code is code


async def test_large(go_server: Client) -> None:
    size = (4 << 20) - 64
    request = Int64Value(value=size)
    answer = await go_server.unary(SERVICE, "Size", request, BytesValue, timeout=20)
    assert len(answer.value) == size


async def test_too_long_request(gopeer: Path, go_server: Client) -> None:
    """Go drops the body and answers; so do we, and the connection goes on."""
    go_server.max_message = 16 << 20
    request = StringValue(value="x" * (5 << 20))
    with pytest.raises(RpcError, match="exceed") as caught:
        await go_server.unary(SERVICE, "Echo", request, StringValue, timeout=20)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    request = StringValue(value="after")
    answer = await go_server.unary(SERVICE, "Echo", request, StringValue, timeout=10)
    assert answer.value == "after"


async def test_server_streaming(go_server: Client) -> None:
    request = Int64Value(value=100)
    stream = go_server.server_streaming(SERVICE, "Count", request, Int64Value, timeout=10)
    async with stream:
        assert [item.value async for item in stream] == list(range(100))


async def test_streaming_error(go_server: Client) -> None:
    request = Int64Value(value=13)
    stream = go_server.server_streaming(SERVICE, "Count", request, Int64Value, timeout=10)
    async with stream:
        for _ in range(13):
            await stream.receive()
        with pytest.raises(RpcError, match="unlucky"):
            await stream.receive()


async def test_client_streaming(go_server: Client) -> None:
    async with go_server.client_streaming(SERVICE, "Sum", Int64Value, timeout=10) as stream:
        for number in range(1, 11):
            await stream.send(Int64Value(value=number))
        assert (await stream.finish()).value == 55


async def test_bidi(go_server: Client) -> None:
    async with go_server.bidi(SERVICE, "Chat", StringValue, timeout=10) as stream:
        for word in ("one", "", "three"):
            await stream.send(StringValue(value=word))
            assert await stream.receive() == StringValue(value=word.upper())
        await stream.close_send()
        assert await stream.receive() is None
