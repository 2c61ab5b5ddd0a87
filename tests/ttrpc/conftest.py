"""A service with one method of each kind, and a client connected to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value, StringValue

from shims.core.errors import DeadlineExceeded, NotFound
from shims.ttrpc.client import Client
from shims.ttrpc.server import Context, Method, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SERVICE = "voidbox.test.v1.Echo"


class Echo:
    """What the tests call; keeps what handlers saw."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()

    async def echo(self, request: StringValue, context: Context) -> StringValue:
        self.contexts.append(context)
        return StringValue(value=context.first("answer-with", request.value))

    async def size(self, request: Int64Value, context: Context) -> BytesValue:
        return BytesValue(value=bytes(request.value))

    async def fail(self, request: StringValue, context: Context) -> StringValue:
        if request.value == "ours":
            raise NotFound("there is no such thing")
        if request.value == "late":
            raise DeadlineExceeded("it took too long")
        raise RuntimeError(request.value)

    async def block(self, request: StringValue, context: Context) -> StringValue:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request

    async def count(self, request: Int64Value, context: Context) -> AsyncIterator[Int64Value]:
        for number in range(request.value):
            yield Int64Value(value=number)
        if request.value == 13:
            raise NotFound("unlucky")
        if request.value == 14:
            raise DeadlineExceeded("it took too long")

    async def sum(self, requests: AsyncIterator[Int64Value], context: Context) -> Int64Value:
        total = 0
        async for request in requests:
            total += request.value
        return Int64Value(value=total)

    async def chat(
        self, requests: AsyncIterator[StringValue], context: Context
    ) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=request.value.upper())

    async def deaf(self, requests: AsyncIterator[BytesValue], context: Context) -> Int64Value:
        self.started.set()
        await self.release.wait()
        return Int64Value()

    def methods(self) -> dict[str, Method]:
        return {
            "Echo": Method.unary(self.echo, StringValue, StringValue),
            "Size": Method.unary(self.size, Int64Value, BytesValue),
            "Fail": Method.unary(self.fail, StringValue, StringValue),
            "Block": Method.unary(self.block, StringValue, StringValue),
            "Count": Method.server_streaming(self.count, Int64Value, Int64Value),
            "Sum": Method.client_streaming(self.sum, Int64Value, Int64Value),
            "Chat": Method.bidi(self.chat, StringValue, StringValue),
            "Deaf": Method.client_streaming(self.deaf, BytesValue, Int64Value),
        }


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(echo: Echo) -> AsyncIterator[Server]:
    server = Server()
    server.add_service(SERVICE, echo.methods())
    yield server
    server.close()


@pytest.fixture
async def path(server: Server, tmp_path: Path) -> AsyncIterator[Path]:
    """Return the path of a socket on which the server listens."""
    path = tmp_path / "sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    serving = asyncio.create_task(server.serve(listener))
    yield path
    server.close()
    async with asyncio.timeout(5):
        with contextlib.suppress(asyncio.CancelledError):
            await serving


@pytest.fixture
async def client(path: Path) -> AsyncIterator[Client]:
    async with await Client.connect(path) as client:
        yield client
