"""What a Task service owes, asked of the shim over the fake guest and over a real microVM.

The fake earns the trust that the other tests put into it by passing here beside the real thing.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from protos.gen.containerd.v1.types import task_pb2 as types
from protos.gen.io.containerd.cgroups.v2 import metrics_pb2
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.containerd.shim.harness import FAST, SLOW, start_fake_shim
from tests.containerd.shim.real import RealHost, prepare_host, start_real_shim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.containerd.shim.harness import ShimUnderTest


@pytest.fixture(scope="session")
def real_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHost]:
    """Void shims' own directories, with a guest image."""
    with prepare_host(tmp_path_factory.mktemp("void")) as host:
        yield host


@pytest.fixture(params=["fake", pytest.param("real", marks=[pytest.mark.qemu, pytest.mark.root])])
async def shim(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ShimUnderTest]:
    """The same client of two shims."""
    if request.param == "fake":
        async with start_fake_shim(tmp_path, settings=FAST) as fake:
            yield fake.shim
    else:
        host = request.getfixturevalue("real_host")
        async with start_real_shim(host, tmp_path) as real:
            yield real


async def test_output_and_exit_code(shim: ShimUnderTest) -> None:
    pipes = shim.pipes()
    await shim.run("c", "sh", "-c", "echo out; echo err >&2; exit 7", pipes=pipes)
    assert (await shim.call("Wait", timeout=SLOW, id="c")).exit_status == 7
    assert await pipes.all_of("stdout") == b"out\n"
    assert await pipes.all_of("stderr") == b"err\n"
    state = await shim.call("State", id="c")
    assert (state.status, state.exit_status) == (types.STOPPED, 7)
    assert (await shim.call("Delete", timeout=SLOW, id="c")).exit_status == 7
    with pytest.raises(RpcError) as caught:
        await shim.call("State", id="c")
    assert caught.value.code is Code.NOT_FOUND


async def test_a_program_that_is_not_there(shim: ShimUnderTest) -> None:
    """The guest may notice at Create, as runc does, or at Start; then Wait must end."""
    created = False
    with pytest.raises(RpcError, match="/no/such/program") as caught:  # noqa: PT012
        await shim.create("c", "/no/such/program")
        created = True
        await shim.call("Start", timeout=SLOW, id="c")
    assert caught.value.code is not Code.NOT_FOUND
    if created:
        assert (await shim.call("Wait", timeout=SLOW, id="c")).exit_status == 127
        await shim.call("Delete", timeout=SLOW, id="c")
    with pytest.raises(RpcError):
        await shim.call("State", id="c")


async def test_delete_before_start(shim: ShimUnderTest) -> None:
    await shim.create("c", "sleep", "60")
    assert (await shim.call("Delete", timeout=SLOW, id="c")).exit_status == 137


async def test_data_in_and_out(shim: ShimUnderTest) -> None:
    pipes = shim.pipes()
    await shim.run("c", "cat", pipes=pipes)
    data = os.urandom(1 << 20) * 4
    await pipes.write(data)
    await shim.call("CloseIO", id="c", stdin=True)
    assert (await shim.call("Wait", timeout=SLOW, id="c")).exit_status == 0
    got = await pipes.all_of("stdout")
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()


async def test_a_reader_that_is_slow_at_the_exit(
    shim: ShimUnderTest, request: pytest.FixtureRequest
) -> None:
    """What the fifo does not hold is on its way, or in the guest, when the exit is told."""
    size = 1_100_000 if request.node.callspec.params["shim"] == "fake" else 2_000_000
    pipes = shim.pipes(read=False)
    await shim.run("c", "head", "-c", str(size), "/dev/zero", pipes=pipes)
    assert (await shim.call("Wait", timeout=SLOW, id="c")).exit_status == 0
    assert (await shim.call("State", id="c")).exit_status == 0
    pipes.read()
    assert len(await pipes.all_of("stdout")) == size
    assert (await shim.call("Delete", timeout=SLOW, id="c")).exit_status == 0


async def test_execs_pids_and_the_order_of_ends(shim: ShimUnderTest) -> None:
    await shim.run("c", "sleep", "60")
    pipes = shim.pipes()
    await shim.exec("c", "quick", "sh", "-c", "echo hello; exit 4", pipes=pipes)
    await shim.call("Start", id="c", exec_id="quick")
    assert (await shim.call("Wait", timeout=SLOW, id="c", exec_id="quick")).exit_status == 4
    assert await pipes.all_of("stdout") == b"hello\n"
    await shim.call("Delete", id="c", exec_id="quick")
    await shim.exec("c", "long", "sleep", "60")
    await shim.call("Start", id="c", exec_id="long")
    assert len((await shim.call("Pids", id="c")).processes) == 2
    await shim.call("Kill", id="c", signal=9)
    assert (await shim.call("Wait", timeout=SLOW, id="c")).exit_status == 137
    assert (await shim.call("Wait", id="c", exec_id="long")).exit_status == 137
    with pytest.raises(RpcError) as caught:
        await shim.call("Kill", id="c", signal=9)
    assert caught.value.code is Code.NOT_FOUND


async def test_terminal_and_its_size(shim: ShimUnderTest) -> None:
    pipes = shim.pipes(terminal=True)
    await shim.create("c", "sh", "-c", "stty size; read x; stty size; exit 3", pipes=pipes)
    await shim.call("ResizePty", id="c", width=100, height=40)
    await shim.call("Start", id="c")
    await pipes.wait_for("stdout", b"40 100")
    await shim.call("ResizePty", id="c", width=120, height=50)
    await pipes.write(b"\n")
    await pipes.wait_for("stdout", b"50 120")
    assert (await shim.call("Wait", timeout=SLOW, id="c")).exit_status == 3


async def test_pause_statistics_and_signals(shim: ShimUnderTest) -> None:
    await shim.run("c", "sleep", "60")
    await shim.call("Pause", timeout=SLOW, id="c")
    assert (await shim.call("State", id="c")).status == types.PAUSED
    await shim.call("Resume", timeout=SLOW, id="c")
    stats = (await shim.call("Stats", id="c")).stats
    assert stats.type_url == "io.containerd.cgroups.v2.Metrics"
    assert metrics_pb2.Metrics.FromString(stats.value).pids.current > 0
    # Signal 9: pid 1 of a pid namespace does not hear of others unless it asked for them.
    await shim.call("Kill", id="c", signal=9, all=True)
    assert (await shim.call("Wait", timeout=SLOW, id="c")).exit_status == 137
