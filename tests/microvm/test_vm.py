"""What became of a VM: the judgement from QEMU's exit, its events and the console."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from shims.core.errors import TargetError
from shims.microvm.config import ExitReason, StartFailed
from shims.microvm.launcher import Launcher
from shims.microvm.plan import Fd, Plan
from shims.microvm.vm import Vm, VmSetup, judge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TIMEOUT = 10.0

PANIC = ["[    1.0] Kernel panic - not syncing: Attempted to kill init!", "[    1.1] CPU: 0"]


@pytest.mark.parametrize(
    ("code", "facts", "reason", "words"),
    [
        (0, {"shutdown": "guest-shutdown"}, ExitReason.POWEROFF, "powered off"),
        (0, {"shutdown": "guest-reset", "console": PANIC}, ExitReason.PANIC, "kill init"),
        (0, {"shutdown": "guest-panic", "console": PANIC}, ExitReason.PANIC, "kill init"),
        (0, {"shutdown": "guest-reset"}, ExitReason.PANIC, "without a word"),
        (
            0,
            {
                "shutdown": "guest-reset",
                "console": ["Kernel panic - not syncing: System is deadlocked on memory"],
            },
            ExitReason.GUEST_OOM,
            "deadlocked",
        ),
        (-9, {}, ExitReason.KILLED, "SIGKILL"),
        (-15, {"oom_kills": 3}, ExitReason.KILLED, "SIGTERM"),
        (-6, {"console": ["assertion failed"]}, ExitReason.ERROR, "SIGABRT): assertion failed"),
        (-9, {"oom_kills": 1}, ExitReason.OOM, "memory limit"),
        (0, {"shutdown": "host-signal"}, ExitReason.KILLED, "signal"),
        (1, {"console": ["qemu: no such machine"]}, ExitReason.ERROR, "no such machine"),
        (1, {}, ExitReason.ERROR, "said nothing"),
        (-40, {}, ExitReason.KILLED, "signal 40"),  # a real-time signal, which has no name
        (127, {"failure": "cannot run qemu: gone"}, ExitReason.ERROR, "cannot run qemu"),
    ],
)
def test_judge(code: int, facts: dict[str, object], reason: ExitReason, words: str) -> None:
    end = judge(code, **facts)  # type: ignore[arg-type]
    assert end.reason is reason
    assert words in end.detail
    assert end.status == code


# ---- a QEMU that a guest has taken over --------------------------------------------------------


@asynccontextmanager
async def played(script: str, directory: Path) -> AsyncIterator[Vm]:
    """A VM whose QEMU is a Python script with ``qmp``, the monitor's socket."""
    begin = f"import os, socket, signal\nqmp = socket.socket(fileno={Fd.QMP:d})\n"
    plan = Plan(("-c", begin + script), frozenset({Fd.QMP, Fd.LINK, Fd.CONSOLE}), "")
    setup = VmSetup(plan, sys.executable, directory, {})
    async with AsyncExitStack() as stack:
        yield await Vm.spawn(setup, Launcher.fork(None), stack)


@pytest.mark.parametrize("answers", [0, 3000])
async def test_its_end_is_seen_whatever_it_said_last(tmp_path: Path, answers: int) -> None:
    """More than is read in one go, so that the end is noticed before all of it."""
    script = f"""
poison = b'{{"timestamp": {{"seconds": 1, "microseconds": 1' + b'0' * 400 + b'}}, "event": "X"}}\\n'
qmp.setblocking(False)
try:
    for _ in range(100):
        qmp.send(b'{{"return": {{}}}}\\n' * {answers} + poison + b'[]\\n')
except OSError:
    pass
os._exit(7)
"""
    async with played(script, tmp_path) as vm:
        end = await asyncio.wait_for(asyncio.shield(vm.exited), TIMEOUT)
    assert end.status == 7


async def test_a_failure_to_understand_an_end_hides_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with played("os._exit(7)", tmp_path) as vm:

        def fail() -> None:
            raise RuntimeError("as no review foresaw it")

        monkeypatch.setattr(vm.monitor, "drain", fail)
        end = await asyncio.wait_for(asyncio.shield(vm.exited), TIMEOUT)
    assert end.status == 7


async def test_a_flood_of_stops_is_one_question(tmp_path: Path) -> None:
    script = """
stop = b'{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "STOP"}\\n'
qmp.sendall(stop * 10000 + b'{"timestamp": {}, "event": "RESUME"}\\n')
signal.pause()
"""
    async with played(script, tmp_path) as vm:
        heard = asyncio.Event()

        def on_event(name: str, data: dict[str, Any]) -> None:
            vm._on_event(name, data)
            if name == "RESUME":
                heard.set()

        vm.monitor._on_event = on_event
        await asyncio.wait_for(heard.wait(), TIMEOUT)
        assert len(vm.monitor._waiting) == 1


@pytest.mark.parametrize("answer", ["[]", "5", '{"status": []}', '{"status": "paused"}'])
async def test_the_answer_to_it_may_be_anything(tmp_path: Path, answer: str) -> None:
    script = f"""
for answer in (b'{answer}', b'{{"status": "internal-error"}}'):
    qmp.sendall(b'{{"event": "STOP"}}\\n')
    qmp.recv(1000)
    qmp.sendall(b'{{"return": ' + answer + b'}}\\n')
signal.pause()
"""
    async with played(script, tmp_path) as vm:
        end = await asyncio.wait_for(asyncio.shield(vm.exited), TIMEOUT)
    assert end.reason is ExitReason.ERROR
    assert "QEMU stopped the VM: internal-error" in end.detail


# ---- saving its state --------------------------------------------------------------------------

ACCEPT = """
qmp.recv(1000)
qmp.sendall(b'{"return": {}}\\n' * 2)
"""


@pytest.mark.parametrize(
    ("script", "reason", "words"),
    [
        ("os.kill(os.getpid(), 9)", ExitReason.KILLED, "SIGKILL"),
        (ACCEPT + "os.kill(os.getpid(), 9)", ExitReason.KILLED, "SIGKILL"),
        (ACCEPT + "signal.pause()", ExitReason.ERROR, "its state was not saved within 1 s"),
        (
            ACCEPT
            + """qmp.sendall(b'{"event": "MIGRATION", "data": {"status": "failed"}}\\n')
signal.pause()""",
            ExitReason.ERROR,
            "could not save its state",
        ),
    ],
)
async def test_a_qemu_that_does_not_save_is_a_start_that_failed(
    tmp_path: Path, script: str, reason: ExitReason, words: str
) -> None:
    read, write = os.pipe()
    begin = time.monotonic()
    async with played(script, tmp_path) as vm:
        with pytest.raises(StartFailed, match=words) as caught:
            await vm.save_state(write, 1.0 if "pause" in script else 2 * TIMEOUT)
    os.close(read)
    os.close(write)
    assert caught.value.exit.reason is reason
    assert time.monotonic() - begin < TIMEOUT


async def test_a_qemu_that_refuses_to_save_says_why(tmp_path: Path) -> None:
    script = """
qmp.recv(1000)
qmp.sendall(b'{"error": {"class": "GenericError", "desc": "no such fd"}}\\n' * 2)
signal.pause()
"""
    async with played(script, tmp_path) as vm:
        with pytest.raises(TargetError, match="no such fd"):
            await vm.save_state(0, TIMEOUT)
