"""What a start tries, in which order and for how long, with VMs that only say how they ended."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from shims.guest.image import GuestImage
from shims.microvm import accel
from shims.microvm import machine as machine_module
from shims.microvm.accel import HostFacts
from shims.microvm.config import ExitReason, MachineConfig, MachineExit, StartFailed
from shims.microvm.machine import _Starter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

HANG = ExitReason.BOOT_HANG


def failed(reason: ExitReason = ExitReason.ERROR) -> StartFailed:
    return StartFailed(MachineExit(reason, "as the test wants it", []))


class Scripted(_Starter):
    """A starter whose VMs end as the script says: an outcome for each attempt, in order."""

    def __init__(self, directory: Path, *script: StartFailed | None, **changes: Any) -> None:
        image = GuestImage(directory, directory / "kernel", directory / "initramfs", "r", "d", ())
        given = {"name": "x", "state_dir": directory, "run_dir": directory, **changes}
        config = MachineConfig(image=image, qemu="/bin/true", **given)
        super().__init__(config, AsyncExitStack(), None)
        self.script = list(script)
        self.tried: list[str] = []
        self.left: list[float] = []

    def attempt(self, what: str) -> Any:
        self.tried.append(what)
        self.left.append(self._left())
        if (outcome := self.script.pop(0)) is not None:
            raise outcome

        return SimpleNamespace(marks={})

    def _take_launcher(self) -> None:
        pass

    async def _clone(self, hardware: Any, _: Any) -> Any:
        return self.attempt(f"clone {hardware.accelerator}")

    async def _boot(self, hardware: Any, _: Any) -> Any:
        return self.attempt(f"boot {hardware.accelerator}")


@pytest.fixture
def on_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host on which everything speaks for KVM, unless it failed."""

    def facts(state_dir: Path) -> HostFacts:
        return HostFacts(hardware=True, device="", failed=accel._remembered_failure(state_dir))

    monkeypatch.setattr(accel, "read_host_facts", facts)
    monkeypatch.setattr(machine_module, "host_tsc_khz", lambda _: 2_000_000)


class Shelf:
    """Stands for the keeper: what was asked, and what was dropped."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.dropped: list[str] = []

    async def acquire(
        self, key: str, _: Path, build: Callable[[], Awaitable[Any]], *, timeout: float
    ) -> Any:
        self.waits.append(timeout)

        class Template:
            def close(self) -> None:
                pass

        return Template()

    async def drop(self, _: Path, key: str) -> list[str]:
        self.dropped.append(key)
        return [key]


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    made = Shelf()
    monkeypatch.setattr(machine_module, "acquire_template", made.acquire)
    monkeypatch.setattr(machine_module, "drop_templates", made.drop)
    return made


@pytest.mark.usefixtures("on_kvm")
@pytest.mark.parametrize("reason", [ExitReason.ERROR, ExitReason.BOOT_HANG, ExitReason.PANIC])
async def test_a_vm_that_starts_with_neither_says_nothing_about_kvm(
    tmp_path: Path, reason: ExitReason
) -> None:
    for _ in range(2):
        starter = Scripted(tmp_path, failed(reason), failed(reason), template="off")
        with pytest.raises(StartFailed):
            await starter.start()
        assert starter.tried == ["boot kvm", "boot tcg"]  # the second time, too
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("on_kvm")
async def test_a_kvm_that_fails_where_tcg_does_not_is_remembered(tmp_path: Path) -> None:
    starter = Scripted(tmp_path, failed(HANG), None, template="off")
    machine = await starter.start()
    assert starter.tried == ["boot kvm", "boot tcg"]
    assert "KVM failed on this host: as the test wants it" in machine.accelerator_reason
    starter = Scripted(tmp_path, None, template="off")
    await starter.start()
    assert starter.tried == ["boot tcg"]
    accel.memory_path(tmp_path).unlink()
    starter = Scripted(tmp_path, None, template="off")
    await starter.start()
    assert starter.tried == ["boot kvm"]


@pytest.mark.usefixtures("on_kvm")
async def test_what_cannot_be_remembered_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    starter = Scripted(tmp_path, failed(), None, template="off")
    await starter.start()
    assert starter.tried == ["boot kvm", "boot tcg"]
    assert "No space left" in caplog.text


@pytest.mark.usefixtures("on_kvm")
async def test_kvm_is_watched_for_as_long_as_it_boots(tmp_path: Path, shelf: Shelf) -> None:
    """Not for as long as somebody else builds a template."""
    starter = Scripted(tmp_path, failed(HANG), failed(HANG), failed(HANG), None)
    starter._deadline -= 30  # that went by
    await starter.start()
    assert starter.tried[3] == "clone tcg"
    assert starter.left[:3] == [accel.KVM_WATCH_SECONDS] * 3
    assert starter.left[3] > 2 * accel.KVM_WATCH_SECONDS


async def test_waiting_for_another_leaves_time_to_build(tmp_path: Path, shelf: Shelf) -> None:
    starter = Scripted(tmp_path, None, accelerator="tcg", boot_timeout=40.0)
    await starter.start()
    assert 15 < shelf.waits[0] <= 20


@pytest.mark.parametrize(
    ("script", "tried", "dropped"),
    [
        ([None], ["clone"], 0),
        # One hang may be the host's.
        ([failed(HANG), None], ["clone", "clone"], 0),
        ([failed(HANG), failed(HANG), None], ["clone", "clone", "boot"], 1),
        # A template that does not load is none.
        ([failed(), None], ["clone", "clone"], 1),
        ([failed(), failed(), None], ["clone", "clone", "boot"], 2),
    ],
)
async def test_when_a_template_is_given_up(
    tmp_path: Path,
    shelf: Shelf,
    script: list[StartFailed | None],
    tried: list[str],
    dropped: int,
) -> None:
    starter = Scripted(tmp_path, *script, accelerator="tcg")
    await starter.start()
    assert starter.tried == [f"{what} tcg" for what in tried]
    assert len(shelf.dropped) == dropped


@pytest.mark.parametrize("reason", [ExitReason.KILLED, ExitReason.OOM])
async def test_an_end_from_outside_is_nobodys_fault(
    tmp_path: Path, shelf: Shelf, reason: ExitReason
) -> None:
    starter = Scripted(tmp_path, failed(reason), accelerator="tcg")
    with pytest.raises(StartFailed):
        await starter.start()
    assert shelf.dropped == []
