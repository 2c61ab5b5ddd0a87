"""What a QEMU is given of its host."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from shims.guest.image import GuestImage
from shims.microvm import accel, boot
from shims.microvm.boot import open_image
from shims.microvm.config import MachineConfig, QemuUser
from shims.microvm.keeper import SEALS
from shims.microvm.plan import Fd

if TYPE_CHECKING:
    from pathlib import Path


def make_config(directory: Path) -> MachineConfig:
    for name in ("kernel", "initramfs"):
        (directory / name).write_text(f"the {name}")
    image = GuestImage(directory, directory / "kernel", directory / "initramfs", "r", "d", ())
    return MachineConfig(image=image, name="x", state_dir=directory, run_dir=directory)


def test_who_names_no_user_gets_an_unprivileged_one(tmp_path: Path) -> None:
    assert make_config(tmp_path).user == QemuUser()


@pytest.mark.root
@pytest.mark.parametrize(("mode", "copied"), [(0o644, False), (0o600, True)])
def test_a_private_image_reaches_qemu_as_a_sealed_copy(
    tmp_path: Path, mode: int, copied: bool
) -> None:
    config = make_config(tmp_path)
    config.image.kernel.chmod(mode)
    with ExitStack() as opened:
        kernel = open_image(config, opened)[Fd.KERNEL]
        assert os.pread(kernel, 100, 0) == b"the kernel"
        if copied:
            assert fcntl.fcntl(kernel, fcntl.F_GET_SEALS) & SEALS == SEALS
        else:
            assert os.path.samestat(os.fstat(kernel), config.image.kernel.stat())


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "group", "groups"), [(0o660, 107, (107,)), (0o666, 107, ()), (0o660, 0, ())]
)
def test_qemu_gets_the_devices_group_and_never_roots(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    group: int,
    groups: tuple[int, ...],
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, 0, group)
    device.chmod(mode)
    monkeypatch.setattr(accel.device_groups, "__defaults__", (str(device),))
    assert boot._groups("kvm") == groups
    assert boot._groups("tcg") == ()
