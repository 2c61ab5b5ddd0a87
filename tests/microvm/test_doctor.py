"""Doctor: one finding for each thing that a start needs, with its remedy."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from shims.microvm import accel, doctor
from shims.microvm.accel import HostFacts, remember_failure
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
    "libseccomp",
    "overlay",
    "traffic control",
    "free space",
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


@pytest.mark.parametrize(
    ("facts", "fix"),
    [
        (HostFacts(True, "/dev/kvm: Permission denied"), "group"),
        (HostFacts(True, f"/dev/kvm: {accel.ROOT_ONLY}"), "chgrp kvm /dev/kvm"),
        (HostFacts(True, "/dev/kvm: No such file or directory"), "modprobe"),
        (HostFacts(True, "/dev/kvm: Device or resource busy"), "dmesg"),
        (HostFacts(False, ""), "nested"),
        (HostFacts(False, "/dev/kvm: No such file or directory"), "nested"),
        (HostFacts(True, "", "no hello in 8 s"), "accelerator.json"),
    ],
)
async def test_each_reason_not_to_use_kvm_has_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: HostFacts, fix: str
) -> None:
    monkeypatch.setattr(accel, "read_host_facts", lambda _: facts)
    check = doctor._accelerator(tmp_path)
    assert check.verdict == "warn"
    assert fix in check.fix
    assert (facts.device or facts.failed or "vmx") in check.detail


async def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._space(tmp_path / "not" / "there").verdict == "ok"
    monkeypatch.setattr(doctor, "_LITTLE_SPACE", 1 << 60)
    check = doctor._space(tmp_path / "not" / "there")
    assert check.verdict == "warn"
    assert "void-cache gc" in check.fix


async def test_a_kernel_without_traffic_control(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr("shims.microvm.redirect.add_redirect", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check = await doctor._redirect()
    assert check.verdict == "warn"
    assert "sch_ingress" in check.fix


def test_virtiofsd_is_looked_for_where_starts_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("shims.microvm.virtiofs._KNOWN_PLACES", ())
    assert doctor._virtiofsd().verdict == "warn"
    (tmp_path / "virtiofsd").write_text("#!/bin/sh\n")
    (tmp_path / "virtiofsd").chmod(0o755)
    assert doctor._virtiofsd().detail == str(tmp_path / "virtiofsd")


@pytest.mark.parametrize("there", [True, False])
def test_overlay_is_there_or_can_be_loaded(tmp_path: Path, there: bool) -> None:
    filesystems, modules = tmp_path / "filesystems", tmp_path / "modules.dep"
    filesystems.write_text("nodev\ttmpfs\n")
    assert doctor._overlay(str(filesystems), str(modules)).verdict == "warn"
    if there:
        filesystems.write_text("nodev\ttmpfs\nnodev\toverlay\n")
    else:
        modules.write_text("kernel/fs/overlayfs/overlay.ko.xz:\n")
    assert doctor._overlay(str(filesystems), str(modules)).verdict == "ok"


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
