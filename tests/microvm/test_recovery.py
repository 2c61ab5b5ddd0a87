"""Starts that fail half-way, templates that do not load, keepers that die, KVM that lies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shims.core.errors import NotSupported
from shims.microvm import accel, boot, templates
from shims.microvm import machine as machine_module
from shims.microvm.machine import Machine, start_machine
from shims.microvm.templates import list_templates
from shims.microvm.uids import UserLease
from shims.microvm.vm import Vm
from tests.microvm.conftest import Host, keeper_pid, until_gone

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(90)]

NoLeaks = Callable[[Path], Any]


# ---- failures half-way -------------------------------------------------------------------------

STEPS = [
    (Vm, "_listen"),
    (Vm, "_start"),
    (Vm, "connect_link"),
    (machine_module, "acquire_template"),
    (machine_module, "make_setup"),
    (machine_module, "find_program"),
    (machine_module, "host_tsc_khz"),
    (Machine, "connect"),
    (UserLease, "take"),
]


@pytest.mark.parametrize(("place", "step"), STEPS, ids=[step for _, step in STEPS])
@pytest.mark.parametrize("template", ["shared", "off"])
async def test_a_failed_step_leaves_nothing(
    host: Host,
    no_leaks: NoLeaks,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    step: str,
    template: str,
) -> None:
    class Injected(BaseException):
        pass

    def fail(*_: object, **__: object) -> None:
        raise Injected

    if step == "acquire_template" and template == "off":
        pytest.skip("a cold boot asks for none")
    if step == "take" and os.geteuid() != 0:
        pytest.skip("only root leases ids")
    async with start_machine(host.config()):
        pass  # the template is there: the failure strikes the clone
    async with no_leaks(host.run_dir):
        with monkeypatch.context() as patch:
            patch.setattr(place, step, fail)
            with pytest.raises(Injected):
                async with start_machine(host.config(template=template)):
                    pytest.fail("the step was skipped")


async def test_a_cancelled_start_leaves_nothing(host: Host, no_leaks: NoLeaks) -> None:
    async def start() -> None:
        async with start_machine(host.config(template="off")):
            pytest.fail("too quick")

    async with no_leaks(host.run_dir):
        task = asyncio.ensure_future(start())
        await asyncio.wait([task], timeout=0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# ---- templates that fail, keepers that die, accelerators that lie ------------------------------


async def test_a_template_that_does_not_load_is_rebuilt(
    fresh_host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its state is sound by its hash, but is not what this QEMU expects."""
    host = fresh_host
    real = templates.seal_template
    spoiled: list[str] = []

    def spoil(key: str, memory: int, state: int) -> Any:
        if not spoiled:
            spoiled.append(key)
            os.pwrite(state, b"\0" * 64, os.fstat(state).st_size // 2)
            os.ftruncate(state, os.fstat(state).st_size // 2 + 64)
        return real(key, memory, state)

    monkeypatch.setattr(boot, "seal_template", spoil)
    async with start_machine(host.config()) as machine:
        assert machine.started_as == "clone"
    assert spoiled
    assert "does not start" in caplog.text
    assert len(await list_templates(host.run_dir)) == 1


async def test_the_keeper_may_die_at_any_time(fresh_host: Host) -> None:
    host = fresh_host
    async with start_machine(host.config()) as running:
        pid = await keeper_pid(host.run_dir)
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        await until_gone(pidfd)
        await running.link.telemetry()
        async with start_machine(host.config()) as machine:
            assert machine.started_as == "clone"
        assert await keeper_pid(host.run_dir) not in (0, pid)


@pytest.mark.kvm
async def test_a_kvm_that_lies_is_found_out_and_remembered(
    fresh_host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = fresh_host
    if read := accel.explain(accel.read_host_facts(Path("/nonexistent"))):
        assert "vmx" in read  # this host: the device opens, but cannot be relied on
    else:
        pytest.skip("KVM works on this host")
    monkeypatch.setattr(accel, "KVM_WATCH_SECONDS", 2.0)
    monkeypatch.setattr(accel, "_HARDWARE_FLAGS", frozenset({"fpu"}))
    async with start_machine(host.config(template="off")) as machine:
        assert "KVM failed" in machine.accelerator_reason
    assert "using TCG" in caplog.text
    began = time.monotonic()
    async with start_machine(host.config(template="off")) as machine:
        assert "failed earlier" in machine.accelerator_reason
    assert time.monotonic() - began < 30


async def test_kvm_by_name_fails_rather_than_falls_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "_device_trouble", lambda _: "/dev/kvm: Permission denied")
    with pytest.raises(NotSupported, match="Permission denied"):
        async with start_machine(host.config(accelerator="kvm")):
            pytest.fail("there is no KVM")
