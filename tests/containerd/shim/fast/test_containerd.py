"""Events against a real containerd: it takes them, and misses none when it is restarted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from protos.gen.containerd.events import task_pb2 as events
from shims.containerd.shim.events import Publisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.containerd, pytest.mark.root]

CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/c.sock"
"""


@contextlib.asynccontextmanager
async def running_containerd(folder: Path) -> AsyncIterator[None]:
    """Run a containerd of our own until the block ends."""
    config = folder / "config.toml"
    config.write_text(CONFIG.format(folder=folder))
    process = await asyncio.create_subprocess_exec(
        "containerd", "--config", config, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    draining: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(30):
            while b"containerd successfully booted" not in await process.stderr.readline():
                assert process.returncode is None
        draining = asyncio.create_task(process.stderr.read())
        yield
    finally:
        process.terminate()
        async with asyncio.timeout(30):
            await process.wait()
            if draining is not None:
                await draining


@contextlib.asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[asyncio.StreamReader]:
    """Subscribe with ctr; yields its output."""
    process = await asyncio.create_subprocess_exec(
        "ctr", "--address", folder / "c.sock", "events", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def expect(lines: asyncio.StreamReader, target: Publisher, name: str) -> None:
    """Publish until ctr, which may not have subscribed yet, prints the event."""
    async with asyncio.timeout(20):
        while True:
            target.publish("/tasks/exit", events.TaskExit(container_id=name, exit_status=7))
            assert await target.flush(10)
            try:
                line = await asyncio.wait_for(lines.readline(), 0.2)
            except TimeoutError:
                continue
            assert b"void-test /tasks/exit" in line
            if f'"container_id":"{name}"'.encode() in line:
                assert b'"exit_status":7' in line
                return


async def test_containerd_takes_events(tmp_path: Path) -> None:
    state = tmp_path / "state-of-shim"
    state.mkdir()
    address = tmp_path / "c.sock.ttrpc"
    async with Publisher(str(state), "void-test", ttrpc_address=str(address)) as target:
        async with running_containerd(tmp_path), listening(tmp_path) as lines:
            await expect(lines, target, "before")
        target.publish("/tasks/exit", events.TaskExit(container_id="meanwhile"))
        assert not await target.flush(0.1)
        async with running_containerd(tmp_path), listening(tmp_path) as lines:
            await expect(lines, target, "after")
            assert target.pending == 0
