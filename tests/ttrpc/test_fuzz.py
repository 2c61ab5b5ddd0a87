"""Hostile peers: whatever bytes come, the server lives, stays small and serves the others."""

from __future__ import annotations

import asyncio
import random
import socket
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from google.protobuf.wrappers_pb2 import Int64Value, StringValue

from shims.ttrpc.client import Client
from shims.ttrpc.envelope import request_head, response_head
from shims.ttrpc.errors import LinkClosed, RpcError
from shims.ttrpc.frames import Flag, FrameReader, FrameType, frame_header
from tests.ttrpc.conftest import SERVICE

if TYPE_CHECKING:
    from pathlib import Path

    from shims.ttrpc.server import Server

METHODS = ("Echo", "Size", "Fail", "Count", "Sum", "Chat", "Nothing")


def session(rng: random.Random) -> bytes:
    """Return a plausible conversation of a client."""
    out = bytearray()
    stream_id = 1
    for _ in range(rng.randrange(1, 12)):
        payload = Int64Value(value=rng.randrange(50)).SerializeToString()
        head = request_head(SERVICE, rng.choice(METHODS), len(payload), rng.choice((0, 10**7)))
        flags = rng.choice((0, Flag.REMOTE_OPEN, Flag.REMOTE_CLOSED))
        out += frame_header(len(head + payload), stream_id, FrameType.REQUEST, flags)
        out += head + payload
        for _ in range(rng.randrange(3)):
            flags = rng.choice((0, Flag.REMOTE_CLOSED | Flag.NO_DATA, Flag.NO_DATA))
            body = b"" if flags else payload
            out += frame_header(len(body), stream_id, FrameType.DATA, flags) + body
        stream_id += rng.choice((2, 2, 2, 1, 0))
    return bytes(out)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Return ``data`` with some bytes changed, dropped, doubled or cut."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(out)) if out else 0
        match rng.randrange(4):
            case 0 if out:
                out[at] = rng.randrange(256)
            case 1:
                del out[at : at + rng.randrange(1, 9)]
            case 2:
                out[at:at] = out[at : at + rng.randrange(1, 40)]
            case _:
                out[at:at] = rng.randbytes(rng.randrange(1, 12))
    return bytes(out)


async def attack(path: Path, data: bytes) -> None:
    """Send bytes, say goodbye, and read what the server answers until it closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(20):
        try:
            while await reader.read(1 << 16):
                pass
        except ConnectionError:
            pass
    writer.close()


async def check_alive(client: Client) -> None:
    request = StringValue(value="alive")
    assert (await client.unary(SERVICE, "Echo", request, StringValue, timeout=10)) == request


@pytest.mark.parametrize("seed", range(6))
async def test_random_and_mutated_sessions(
    path: Path, client: Client, server: Server, seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        data = rng.randbytes(rng.randrange(2000)) if rng.random() < 0.2 else session(rng)
        if rng.random() < 0.8:
            data = mutated(rng, data)
        await attack(path, data)
    await check_alive(client)
    await client.close()
    await server.drain(timeout=10)
    assert server.calls == 0


async def test_a_flood_of_calls_without_reading(path: Path, client: Client) -> None:
    """The server stops reading a client that does not take its answers."""
    payload = Int64Value(value=100_000).SerializeToString()
    head = request_head(SERVICE, "Size", len(payload))
    attacker = socket.socket(socket.AF_UNIX)
    attacker.setblocking(False)
    attacker.connect(str(path))
    sent = 0
    tracemalloc.start()
    try:
        for stream_id in range(1, 200_000, 2):
            frame = frame_header(len(head + payload), stream_id, FrameType.REQUEST)
            try:
                attacker.send(frame + head + payload)
            except BlockingIOError:
                await check_alive(client)
                try:
                    attacker.send(frame + head + payload)
                except BlockingIOError:
                    break
            sent += 1
        await check_alive(client)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        attacker.close()
    assert sent < 50_000
    assert peak < 160 << 20


async def test_half_a_frame_and_silence(path: Path, client: Client) -> None:
    silent = await asyncio.open_unix_connection(path)
    silent[1].write(frame_header(4 << 20, 1, FrameType.REQUEST) + b"x" * 100)
    await silent[1].drain()
    await check_alive(client)
    silent[1].close()


@pytest.mark.parametrize("seed", range(4))
async def test_a_hostile_server(seed: int) -> None:
    """The client's calls end, whatever the server sends; it is hostile when a guest is."""
    rng = random.Random(seed)
    for _ in range(20):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        async with await Client.connect(ours) as client:
            calls = [
                asyncio.create_task(
                    client.unary(SERVICE, "Echo", StringValue(), StringValue, timeout=10)
                )
                for _ in range(4)
            ]
            await asyncio.sleep(0)
            answers = b""
            for stream_id in (1, 3, 5, 99):
                body = response_head(rng.choice((0, 5)), "text", 2) + b"\x0a\x00"
                kind = rng.choice((FrameType.RESPONSE, FrameType.DATA, 7))
                answers += frame_header(len(body), stream_id, kind, rng.randrange(8)) + body
            await asyncio.get_running_loop().sock_sendall(theirs, mutated(rng, answers))
            theirs.close()
            async with asyncio.timeout(15):
                results = await asyncio.gather(*calls, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    assert isinstance(result, LinkClosed | RpcError), result


async def test_what_the_server_answers_is_well_formed(path: Path) -> None:
    rng = random.Random(1)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(session(rng))
    writer.write_eof()
    data = await asyncio.wait_for(reader.read(), 10)
    frames = FrameReader()
    for frame in frames.feed(data):
        assert frame.type in (FrameType.RESPONSE, FrameType.DATA)
    assert frames._end == frames._start
    writer.close()
