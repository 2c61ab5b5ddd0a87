"""Doctor: one finding for each thing that a start needs, with its remedy."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from shims.microvm import doctor
from shims.microvm.accel import remember_failure
from shims.microvm.doctor import Check, collect

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {
    "accelerator",
    "qemu",
    "virtiofsd",
    "mkfs.erofs",
    "mke2fs",
    "setsid",
    "guest image",
    "templates",
    "cgroups",
    "vsock",
    "user",
    "state directory",
    "runtime directory",
}


async def look(base: Path, **options: str) -> dict[str, Check]:
    found = await collect(base / "state", base / "run", **options)
    assert all(check.fix for check in found if check.verdict == "fail")
    return {check.name: check for check in found}


async def test_every_check_is_there_and_nothing_is_changed(tmp_path: Path) -> None:
    checks = await look(tmp_path)
    assert set(checks) >= NAMES
    assert any(name.startswith("containerd") for name in checks)
    assert list(tmp_path.iterdir()) == []
    assert checks["templates"].detail.startswith("none stored")
    assert checks["guest image"].verdict == "warn"


async def test_it_is_quick_enough_to_be_asked_often(tmp_path: Path) -> None:
    async with asyncio.timeout(10):
        await look(tmp_path)


@pytest.mark.parametrize(
    ("script", "verdict", "words"),
    [
        ("exit 0", "warn", "newer"),
        ("echo 'QEMU emulator version 6.2.0'", "warn", "6.2.0"),
        ("echo 'QEMU emulator version 9.1.0'; echo 'q35 x'; echo 'pc x'", "fail", "microvm"),
        ("echo 'QEMU version 9.1.0'; echo 'q35 x'; echo 'microvm x'", "ok", "9.1.0"),
    ],
)
async def test_the_qemu_it_finds(tmp_path: Path, script: str, verdict: str, words: str) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{script}\n")
    qemu.chmod(0o755)
    check = next(c for c in await collect(tmp_path, tmp_path, qemu=str(qemu)) if c.name == "qemu")
    assert check.verdict == verdict
    assert words in check.detail + check.fix


async def test_no_qemu(tmp_path: Path) -> None:
    check = (await look(tmp_path, qemu="qemu-system-none"))["qemu"]
    assert (check.verdict, check.fix) == ("fail", "apt-get install qemu-system-x86")


async def test_a_kvm_that_failed_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    remember_failure(tmp_path / "state", "no hello in 8 s")
    monkeypatch.setattr("shims.microvm.accel._HARDWARE_FLAGS", frozenset({"fpu"}))
    monkeypatch.setattr("shims.microvm.accel._device_trouble", lambda _: "")
    check = (await look(tmp_path))["accelerator"]
    assert check.verdict == "warn"
    assert "no hello in 8 s" in check.detail


async def test_directories_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "run").mkdir(mode=0o700)
    checks = await look(tmp_path)
    assert checks["state directory"].verdict == "warn"
    assert checks["state directory"].fix == f"chmod 700 {tmp_path}/state"
    assert checks["runtime directory"].verdict == "ok"


def test_the_path_of_a_containerd_is_what_counts() -> None:
    found = doctor._containerd_sees_the_shim(lambda: [(os.getpid(), "containerd")])
    assert [check.name for check in found] == [f"containerd ({os.getpid()})"]
    assert doctor._containerd_sees_the_shim(lambda: [(1, "init")])[0].detail == "none runs"
    assert doctor._containerd_sees_the_shim(lambda: [(2**22, "containerd")])[0].verdict == "warn"
