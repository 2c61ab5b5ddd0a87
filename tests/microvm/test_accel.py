"""The accelerator's choice, and the host's memory of a KVM that failed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from shims.core.errors import NotSupported
from shims.microvm import accel
from shims.microvm.accel import HostFacts, choose, read_host_facts, remember_failure

if TYPE_CHECKING:
    from pathlib import Path

GOOD = HostFacts(hardware=True, device="")


def test_auto_takes_kvm_when_everything_speaks_for_it_and_watches() -> None:
    verdict = choose("auto", GOOD)
    assert (verdict.accelerator, verdict.fall_back) == ("kvm", True)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (HostFacts(hardware=False, device=""), "neither vmx nor svm"),
        (HostFacts(hardware=True, device="/dev/kvm: Permission denied"), "Permission denied"),
        (HostFacts(hardware=True, device="", failed="it hung"), "failed earlier on this host: it"),
    ],
)
def test_auto_takes_tcg_and_says_why(facts: HostFacts, why: str) -> None:
    verdict = choose("auto", facts)
    assert verdict.accelerator == "tcg"
    assert why in verdict.reason


def test_kvm_by_name_never_falls_back() -> None:
    verdict = choose("kvm", HostFacts(hardware=False, device="", failed="it hung"))
    assert (verdict.accelerator, verdict.fall_back) == ("kvm", False)
    with pytest.raises(NotSupported, match="No such file"):
        choose("kvm", HostFacts(hardware=True, device="/dev/kvm: No such file"))


def test_tcg_by_name() -> None:
    assert choose("tcg", GOOD).accelerator == "tcg"


def test_facts_are_read(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu svm sse\n")
    facts = read_host_facts(tmp_path, cpuinfo=str(cpuinfo), device="/dev/null")
    assert facts == HostFacts(hardware=True, device="")
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu svm_like\n")
    facts = read_host_facts(tmp_path, cpuinfo=str(cpuinfo), device=str(tmp_path / "kvm"))
    assert not facts.hardware
    assert "No such file" in facts.device


def test_a_failure_is_remembered_for_this_boot_and_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_failure(tmp_path, "no hello")
    assert read_host_facts(tmp_path, device="/dev/null").failed == "no hello"
    monkeypatch.setattr(accel, "boot_id", lambda: "another boot")
    assert read_host_facts(tmp_path, device="/dev/null").failed == ""


def test_a_torn_memory_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "accelerator.json").write_text('{"boot_id": ')
    assert read_host_facts(tmp_path, device="/dev/null").failed == ""


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "group", "groups"),
    [
        (0o660, 107, (107,)),
        (0o666, 0, ()),
        (0o666, 107, ()),
        (0o660, 0, None),  # root's group would open more than that
        (0o600, 107, None),
        (0o640, 107, None),
    ],
)
def test_who_may_open_the_device(
    tmp_path: Path, mode: int, group: int, groups: tuple[int, ...] | None
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, 0, group)
    device.chmod(mode)
    assert accel.device_groups(str(device)) == groups
    trouble = read_host_facts(tmp_path, device=str(device)).device
    assert trouble == ("" if groups is not None else f"{device}: {accel.ROOT_ONLY}")


def test_what_a_killed_writer_left_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "accelerator.partial").write_text("{")
    remember_failure(tmp_path, "no hello")
    assert [path.name for path in tmp_path.iterdir()] == ["accelerator.json"]
