"""Streams: no byte lost, nobody blocked by somebody else's reader, input that ends when told."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import time
from typing import TYPE_CHECKING

import pytest

from protos.gen.containerd.v1.types import task_pb2 as types
from shims.containerd.shim.stdio import FileSink
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.containerd.shim.harness import FakeShim


async def test_twenty_mebibytes_through_input_and_output(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes()
    await shim.run("c", "cat", pipes=pipes)
    data = os.urandom(1 << 20) * 20
    await pipes.write(data)
    await shim.call("CloseIO", id="c", stdin=True)
    assert (await shim.call("Wait", id="c")).exit_status == 0
    got = await pipes.all_of("stdout")
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()


async def test_eight_mebibytes_then_exit_then_delete(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes()
    await shim.run("c", "head", "-c", "8388608", "/dev/zero", pipes=pipes)
    await shim.call("Wait", id="c")
    await shim.call("Delete", id="c")
    assert len(await pipes.all_of("stdout")) == 8 << 20


async def test_output_is_quick_enough(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes()
    size = 64 << 20
    await shim.create("c", "head", "-c", str(size), "/dev/zero", pipes=pipes)
    begin = time.monotonic()
    await shim.call("Start", id="c")
    assert len(await pipes.all_of("stdout")) == size
    # 100 MB/s is the budget on a quiet machine; a loaded one must not fail the suite.
    assert size / (time.monotonic() - begin) > 20e6


async def test_a_client_that_detaches_does_not_end_the_input(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes()
    await shim.run("c", "cat", pipes=pipes)
    for text in (b"one\n", b"two\n"):
        fd = os.open(pipes.paths["stdin"], os.O_WRONLY)
        os.write(fd, text)
        os.close(fd)
        await pipes.wait_for("stdout", text)
    assert (await shim.call("State", id="c")).status == types.RUNNING
    await shim.call("CloseIO", id="c", stdin=True)
    assert (await shim.call("Wait", id="c")).exit_status == 0


async def test_input_that_ended_before_the_start(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes()
    await shim.create("c", "cat", pipes=pipes)
    await pipes.write(b"early")
    await shim.call("CloseIO", id="c", stdin=True)
    await shim.call("Start", id="c")
    await shim.call("Wait", id="c")
    assert await pipes.all_of("stdout") == b"early"


async def test_input_that_the_guest_has_no_room_for_is_kept(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes()
    await shim.run("c", "cat", pipes=pipes)
    fake.guest.errors["write_stdio"] = RpcError(Code.RESOURCE_EXHAUSTED, "no room")
    await pipes.write(b"kept")
    await shim.call("CloseIO", id="c", stdin=True)
    await asyncio.wait_for(fake.guest.called("write_stdio"), 10)
    del fake.guest.errors["write_stdio"]
    assert await asyncio.wait_for(pipes.all_of("stdout"), 10) == b"kept"


async def test_a_process_that_does_not_read_stalls_only_its_own_input(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes()
    await shim.run("c", "sleep", "60", pipes=pipes)
    writing = asyncio.create_task(pipes.write(bytes(8 << 20)))
    other = shim.pipes()
    await shim.exec("c", "e", "cat", pipes=other)
    await shim.call("Start", id="c", exec_id="e")
    await other.write(b"through")
    await shim.call("CloseIO", id="c", exec_id="e", stdin=True)
    assert await other.all_of("stdout") == b"through"
    assert not writing.done()
    writing.cancel()


async def test_a_reader_that_stalls_holds_up_its_own_process_only(fake: FakeShim) -> None:
    shim = fake.shim
    stalled = shim.pipes(read=False)
    await shim.run("c", "cat", "/dev/zero", pipes=stalled)
    for number in range(3):
        pipes = shim.pipes()
        await shim.exec("c", f"e{number}", "echo", "through", pipes=pipes)
        await shim.call("Start", id="c", exec_id=f"e{number}")
        assert await pipes.all_of("stdout") == b"through\n"
    await shim.call("Kill", id="c", signal=9)
    assert (await shim.call("Wait", id="c")).exit_status == 137
    await shim.call("Delete", id="c")


async def test_a_child_that_keeps_the_output_open(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes()
    await shim.run("c", "sh", "-c", "trap '' HUP; setsid sleep 5 & echo done", pipes=pipes)
    assert (await shim.call("Wait", id="c")).exit_status == 0
    await pipes.wait_for("stdout", b"done\n")
    await shim.call("Delete", id="c")


@pytest.mark.parametrize("flush", [False, True])
async def test_a_reader_that_is_slow_at_the_exit_gets_everything(
    fake: FakeShim, flush: bool
) -> None:
    shim = fake.shim
    fake.supplies.next.needs_flush = flush
    pipes = shim.pipes(read=False)
    await shim.run("c", "head", "-c", "1100000", "/dev/zero", pipes=pipes)
    assert (await shim.call("Wait", id="c")).exit_status == 0
    await asyncio.wait(fake.group.shared.tasks, timeout=1.0)
    assert not fake.engine.last.exited.done()
    pipes.read()
    assert len(await pipes.all_of("stdout")) == 1100000
    await asyncio.wait_for(asyncio.gather(*fake.group.shared.tasks), 5)
    assert fake.engine.last.stopped
    assert ("delete_process" in fake.guest.calls) is flush
    await shim.call("Delete", id="c")


async def test_a_reader_that_never_comes_holds_the_vm_until_delete(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes(read=False)
    await shim.run("c", "head", "-c", "1100000", "/dev/zero", pipes=pipes)
    assert (await shim.call("Wait", id="c")).exit_status == 0
    await shim.call("Delete", id="c")
    await asyncio.wait_for(asyncio.gather(*fake.group.shared.tasks), 5)
    await shim.call("Shutdown", id="c")
    assert fake.engine.last.stopped


async def test_a_reader_that_comes_late_gets_everything(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes(read=False)
    await shim.run("c", "sh", "-c", "echo early; sleep 60", pipes=pipes)
    await shim.call("State", id="c")
    pipes.read()
    await pipes.wait_for("stdout", b"early\n")


async def test_without_streams_there_is_dev_null(fake: FakeShim) -> None:
    await fake.shim.run("c", "sh", "-c", "echo out; echo err >&2; cat; exit 9")
    assert (await fake.call("Wait", id="c")).exit_status == 9


async def test_a_terminal_has_one_stream_and_a_size(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes(terminal=True)
    await shim.create("c", "sh", "-c", "stty size; read x; stty size", pipes=pipes)
    await shim.call("ResizePty", id="c", width=100, height=40)
    await shim.call("Start", id="c")
    await pipes.wait_for("stdout", b"40 100")
    await shim.call("ResizePty", id="c", width=120, height=50)
    await pipes.write(b"\n")
    await pipes.wait_for("stdout", b"50 120")
    assert (await shim.call("Wait", id="c")).exit_status == 0


async def test_the_size_of_an_execs_terminal_before_its_start(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    pipes = shim.pipes(terminal=True)
    await shim.exec("c", "e", "stty", "size", pipes=pipes)
    await shim.call("ResizePty", id="c", exec_id="e", width=77, height=33)
    await shim.call("Start", id="c", exec_id="e")
    assert b"33 77" in await pipes.all_of("stdout")


async def test_a_resize_without_a_terminal_is_ignored(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.call("ResizePty", id="c", width=1, height=1)


async def test_file_streams_share_one_file(fake: FakeShim, tmp_path: Path) -> None:
    log = tmp_path / "new" / "log"
    bundle = fake.shim.bundle("c", "sh", "-c", "echo out; echo err >&2")
    uri = f"file://{log}"
    await fake.call("Create", id="c", bundle=str(bundle), stdout=uri, stderr=uri)
    await fake.call("Start", id="c")
    await fake.call("Wait", id="c")
    assert sorted(log.read_text().split()) == ["err", "out"]
    assert stat.S_IMODE(log.stat().st_mode) == 0o644


async def test_the_path_of_a_file_stream_is_decoded(fake: FakeShim, tmp_path: Path) -> None:
    """As Go's net/url does it, by which runc's shim reads them."""
    bundle = fake.shim.bundle("c", "echo", "out")
    uri = f"file://{tmp_path}/logs/a%20b%3F%23%25?x=1#part"
    await fake.call("Create", id="c", bundle=str(bundle), stdout=uri)
    await fake.call("Start", id="c")
    await fake.call("Wait", id="c")
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["a b?#%"]
    assert (tmp_path / "logs" / "a b?#%").read_text() == "out\n"


async def test_a_cancelled_write_keeps_its_file_until_it_is_done() -> None:
    """Else it would go on into whatever gets the descriptor's number next."""
    reader, writer = os.pipe()
    sink = FileSink(writer)
    size = 2 << 20  # more than the pipe takes: the thread hangs in write
    job = asyncio.create_task(sink.write(bytes(size)))
    await asyncio.to_thread(os.read, reader, 1)
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    assert job.cancelled()
    await sink.close()
    await sink.close()
    await sink.write(b"late")
    other = os.dup(reader)
    assert other != writer
    os.close(other)
    got = 1
    while part := await asyncio.wait_for(asyncio.to_thread(os.read, reader, 1 << 20), 10):
        got += len(part)
    assert got == size
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer)
    os.close(reader)


_DRIVER = """#!/bin/sh
echo "$CONTAINER_NAMESPACE/$CONTAINER_ID $*" > {log}
exec 5>&-
cat <&4 >> {log}.err &
cat <&3 >> {log}
wait
"""


async def test_a_log_driver_gets_both_streams(fake: FakeShim, tmp_path: Path) -> None:
    log, driver = tmp_path / "log", tmp_path / "driver"
    driver.write_text(_DRIVER.format(log=log))
    driver.chmod(0o755)
    uri = f"binary://{driver}?key=some%20value&other="
    bundle = fake.shim.bundle("c", "sh", "-c", "echo out; echo err >&2")
    await fake.call("Create", id="c", bundle=str(bundle), stdout=uri, stderr=uri)
    await fake.call("Start", id="c")
    await fake.call("Wait", id="c")
    await fake.call("Delete", id="c")
    assert log.read_text() == "tests/c key some value other \nout\n"
    assert (tmp_path / "log.err").read_text() == "err\n"


async def test_a_log_driver_that_does_not_start(fake: FakeShim, tmp_path: Path) -> None:
    bundle = fake.shim.bundle("c", "true")
    uri = f"binary://{tmp_path}/missing"
    with pytest.raises(RpcError, match="No such file"):
        await fake.call("Create", id="c", bundle=str(bundle), stdout=uri, stderr=uri)


async def test_a_log_driver_that_dies_does_not_take_the_container_along(
    fake: FakeShim, tmp_path: Path
) -> None:
    driver = tmp_path / "driver"
    driver.write_text("#!/bin/sh\nexec 5>&-\nexit 0\n")
    driver.chmod(0o755)
    uri = f"binary://{driver}"
    bundle = fake.shim.bundle("c", "sh", "-c", "head -c 4000000 /dev/zero; exit 6")
    await fake.call("Create", id="c", bundle=str(bundle), stdout=uri, stderr=uri)
    await fake.call("Start", id="c")
    assert (await fake.call("Wait", id="c")).exit_status == 6


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
async def test_streams_that_do_not_open(fake: FakeShim, stream: str) -> None:
    bundle = fake.shim.bundle("c", "true")
    for uri in ("/no/such/fifo", "stream://x"):
        with pytest.raises(RpcError, match=stream) as caught:
            await fake.call("Create", id="c", bundle=str(bundle), **{stream: uri})
        assert caught.value.code is Code.INVALID_ARGUMENT
    assert fake.supplies.made == fake.supplies.undone


async def test_no_fd_is_left(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        pipes = shim.pipes()
        await shim.exec("c", f"e{number}", "echo", "x", pipes=pipes)
        await shim.call("Start", id="c", exec_id=f"e{number}")
        await shim.call("Wait", id="c", exec_id=f"e{number}")
        await shim.call("Delete", id="c", exec_id=f"e{number}")
        pipes.close()
    assert len(os.listdir("/proc/self/fd")) == before
