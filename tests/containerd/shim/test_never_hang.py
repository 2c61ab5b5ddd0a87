"""A guest that is silent or dead becomes an answer, an exit and a reason. Never a hang."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from protos.gen.containerd.v1.types import task_pb2 as types
from shims.containerd.shim import vm as vm_module
from shims.core.errors import Unreachable
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.containerd.shim.harness import process_any

if TYPE_CHECKING:
    from tests.containerd.shim.harness import FakeShim


@pytest.fixture(autouse=True)
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are not settings."""
    monkeypatch.setattr(vm_module, "_EXIT_GRACE", 0.1)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("Kill", {"signal": 15}),
        ("Pause", {}),
        ("Start", {"exec_id": "e"}),
        ("Update", {"resources": process_any()}),
    ],
)
async def test_a_silent_guest_fails_the_call_and_then_the_container(
    fake: FakeShim, method: str, fields: dict[str, object]
) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.shim.exec("c", "e", "sleep", "60")
    if method == "Update":
        fields["resources"].type_url = ""  # type: ignore[attr-defined]
    fake.guest.silent.add("all")
    with pytest.raises(RpcError) as caught:
        await fake.shim.call(method, timeout=5, id="c", **fields)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert (await fake.call("Wait", id="c")).exit_status == 255
    assert fake.recorder.topics()[-1] == "exit"
    await fake.call("Delete", id="c")
    await fake.call("Shutdown", id="c")
    assert fake.engine.last.stopped


@pytest.mark.parametrize("method", ["create_container"])
async def test_a_guest_that_is_silent_at_create(
    fake: FakeShim, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shims.containerd.shim.create._GUEST_TIMEOUT", 0.2)
    await asyncio.sleep(0)
    fake.group.vm.begin(fake.supplies.machine_config("c", "tests", None, _Size(), {}, shares=False))
    await fake.group.vm.ready()
    fake.guest.silent.add("all")
    with pytest.raises(RpcError) as caught:
        await fake.shim.create("c", "true")
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert fake.supplies.made == fake.supplies.undone
    await fake.call("Shutdown", id="c")


class _Size:
    memory_mib = 512


async def test_records_answer_while_the_guest_is_silent(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.call("Stats", id="c")
    fake.guest.silent |= {"list_processes", "stats", "signal_process"}
    begin = time.monotonic()
    assert (await fake.call("State", id="c")).status == types.RUNNING
    assert (await fake.call("Connect", id="c")).task_pid
    assert time.monotonic() - begin < 0.5
    assert (await fake.shim.call("Stats", id="c", timeout=3)).stats.value
    assert [info.pid for info in (await fake.shim.call("Pids", id="c", timeout=3)).processes]


async def test_sigkill_is_answered_at_once_and_comes_true(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    fake.guest.silent.add("signal_process")
    begin = time.monotonic()
    await fake.call("Kill", id="c", signal=9)
    assert time.monotonic() - begin < 0.25
    assert (await fake.shim.call("Wait", id="c", timeout=3)).exit_status == 137
    assert fake.engine.last.stopped


async def test_a_guest_that_answers_but_does_not_kill(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    fake.guest.lose_exits = True
    await fake.call("Kill", id="c", signal=9)
    assert (await fake.shim.call("Wait", id="c", timeout=3)).exit_status == 137
    assert any("could not be killed" in line for line in fake.recorder.lines)


@pytest.mark.parametrize(
    ("reason", "status"), [("killed", 137), ("oom", 137), ("panic", 255), ("poweroff", 255)]
)
async def test_a_dead_vm_ends_its_processes(fake: FakeShim, reason: str, status: int) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60", pipes=shim.pipes())
    await shim.exec("c", "e", "sleep", "60", pipes=shim.pipes())
    await shim.call("Start", id="c", exec_id="e")
    waits = [asyncio.create_task(shim.call("Wait", id="c", exec_id=name)) for name in ("", "e")]
    await shim.call("State", id="c")
    fake.engine.last.die(reason, "test")
    assert [ended.exit_status for ended in await asyncio.gather(*waits)] == [status, status]
    assert fake.recorder.topics()[-2:] == ["exit e", "exit"]
    assert any(reason in line for line in fake.recorder.lines)
    for attempt in ("Kill", "Start"):
        with pytest.raises(RpcError):
            await shim.call(attempt, id="c", **({"signal": 9} if attempt == "Kill" else {}))
    await shim.call("Delete", id="c")
    await shim.call("Shutdown", id="c")
    assert fake.group.over.is_set()


async def test_a_broken_link_with_a_living_qemu(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    fake.guest.die()
    assert (await fake.shim.call("Wait", id="c", timeout=3)).exit_status == 255
    assert any("connection to the guest broke" in line for line in fake.recorder.lines)


async def test_the_vm_dies_while_a_process_starts(fake: FakeShim) -> None:
    await fake.shim.create("c", "sleep", "60")
    fake.guest.gates["start_process"] = asyncio.Event()
    starting = asyncio.create_task(fake.call("Start", id="c"))
    await fake.guest.called("start_process")
    fake.engine.last.die()
    with pytest.raises(RpcError) as caught:
        await starting
    assert caught.value.code is Code.UNAVAILABLE
    assert (await fake.call("Wait", id="c")).exit_status == 137
    assert "start" not in fake.recorder.topics()


async def test_a_silent_guest_does_not_stop_delete(fake: FakeShim) -> None:
    await fake.shim.create("c", "sleep", "60")
    fake.guest.silent.add("all")
    assert (await fake.shim.call("Delete", id="c", timeout=5)).exit_status == 137
    await fake.shim.call("Shutdown", id="c", timeout=5)
    assert fake.supplies.made == fake.supplies.undone


async def test_a_heartbeat_finds_a_guest_that_nobody_asks(fake: FakeShim) -> None:
    fake.group.vm._heartbeat = 0.05
    await fake.shim.run("c", "sleep", "60")
    fake.guest.silent.add("all")
    assert (await fake.shim.call("Wait", id="c", timeout=3)).exit_status == 255


@pytest.mark.parametrize("misses", [1, 2])
async def test_a_guest_that_is_slow_once_lives(fake: FakeShim, misses: int) -> None:
    await fake.shim.run("c", "sleep", "60")
    timeouts = []

    async def slow(*, timeout: float) -> None:
        timeouts.append(timeout)
        if len(timeouts) <= misses:
            raise RpcError(Code.DEADLINE_EXCEEDED, "the fake guest is slow")

    fake.guest.telemetry = slow
    await fake.group.vm._check_pulse("a scrape")
    assert timeouts == [fake.group.settings.guest_timeout] * 2
    assert fake.group.vm.alive is (misses == 1)


async def test_giving_up_does_not_wait_for_a_boot(fake: FakeShim) -> None:
    fake.engine.gate = asyncio.Event()
    creating = asyncio.create_task(fake.shim.create("c", "true"))
    await fake.engine.called.wait()
    await asyncio.wait_for(fake.group.abandon("test"), 2)
    with pytest.raises(RpcError) as caught:
        await creating
    assert caught.value.code is Code.UNAVAILABLE
    assert not fake.engine.machines
    assert fake.supplies.made == fake.supplies.undone


async def test_a_vm_that_is_stopped_before_its_start_began(fake: FakeShim) -> None:
    fake.group.vm.begin(fake.supplies.machine_config("c", "tests", None, _Size(), {}, shares=False))
    await fake.group.vm.stop()
    with pytest.raises(Unreachable, match="stopped while it started"):
        await fake.group.vm.ready()
    assert not fake.engine.machines


async def test_an_unexpected_error_of_the_start_is_told(
    fake: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: object) -> object:
        raise KeyError("a bug")

    monkeypatch.setattr(fake.group.vm, "_start", broken)
    with pytest.raises(RpcError, match="KeyError: 'a bug'") as caught:
        await fake.shim.create("c", "true")
    assert caught.value.code is Code.INTERNAL
    assert any("Traceback" in line for line in fake.recorder.lines)


async def test_a_refused_kill_of_an_exec_spares_the_container(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.shim.exec("c", "e", "sleep", "60")
    await fake.call("Start", id="c", exec_id="e")
    fake.guest.errors["signal_process"] = RpcError(Code.FAILED_PRECONDITION, "no")
    await fake.call("Kill", id="c", exec_id="e", signal=9)
    await asyncio.gather(*fake.group.shared.tasks)
    assert (await fake.call("State", id="c")).status == types.RUNNING
    assert fake.group.vm.alive


async def test_an_exec_whose_start_was_not_answered_is_killed(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.shim.exec("c", "e", "sleep", "60")
    fake.guest.gates["start_process"] = asyncio.Event()  # it starts, and nobody is told
    with pytest.raises(RpcError) as caught:
        await fake.call("Start", id="c", exec_id="e")
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    await fake.call("Delete", id="c", exec_id="e")
    assert fake.guest._children[-1].wait() == -9
    assert ("c", "e") not in fake.guest._processes
    assert "exit e" not in fake.recorder.topics()


async def test_one_container_does_not_wait_for_another(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.shim.create("d", "sleep", "60")
    gate = fake.guest.gates["start_process"] = asyncio.Event()
    starting = asyncio.create_task(fake.call("Start", id="d"))
    await fake.call("Kill", id="c", signal=9)
    assert (await fake.call("Wait", id="c")).exit_status == 137
    gate.set()
    await starting
