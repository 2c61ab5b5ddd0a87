"""Writable disks: small on the host, right for the guest, gone with their last user."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from shims.core.errors import InputError, TargetError
from shims.microvm import scratch
from shims.microvm.scratch import SMALLEST, create_scratch

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


def test_a_disk_is_an_empty_file_system_that_takes_hardly_any_space(tmp_path: Path) -> None:
    disk = create_scratch(tmp_path, 10 * GIB)
    assert os.fstat(disk.fd).st_size == disk.size == 10 * GIB
    assert os.fstat(disk.fd).st_blocks * 512 < 1 << 20
    assert os.fstat(disk.fd).st_nlink == 0
    checked = subprocess.run(
        ["e2fsck", "-fn", f"/proc/self/fd/{disk.fd}"], pass_fds=[disk.fd], capture_output=True,
        text=True, check=False, timeout=30,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
    about = subprocess.run(
        ["dumpe2fs", f"/proc/self/fd/{disk.fd}"], pass_fds=[disk.fd], capture_output=True,
        text=True, check=True, timeout=30,
    ).stdout  # fmt: skip
    assert "has_journal" not in about
    assert "Reserved block count:     0" in about
    groups = [line for line in about.splitlines() if line.startswith("Group ")]
    # The guest's kernel need not write the inode tables, which would fill the sparse file.
    assert all("ITABLE_ZEROED" in line for line in groups)
    disk.close()


def test_disks_are_independent_of_each_other_and_of_the_template(tmp_path: Path) -> None:
    one, two = create_scratch(tmp_path, GIB), create_scratch(tmp_path, GIB)
    os.pwrite(one.fd, b"mine", 4096)
    assert os.pread(two.fd, 4, 4096) != b"mine"
    three = create_scratch(tmp_path, GIB)
    assert os.pread(three.fd, 1 << 20, 0) == os.pread(two.fd, 1 << 20, 0)
    for disk in (one, two, three):
        disk.close()
    (template,) = tmp_path.iterdir()
    assert template.suffix == ".ext4"


def test_the_second_disk_of_a_size_takes_a_millisecond_or_so(tmp_path: Path) -> None:
    create_scratch(tmp_path, GIB).close()
    took = []
    for _ in range(10):
        begin = time.perf_counter()
        create_scratch(tmp_path, GIB).close()
        took.append(time.perf_counter() - begin)
    assert min(took) < 0.01


def test_odd_sizes_are_rounded_up_and_absurd_ones_refused(tmp_path: Path) -> None:
    disk = create_scratch(tmp_path, SMALLEST + 1)
    assert disk.size == SMALLEST + (1 << 20)
    disk.close()
    for size in (0, SMALLEST - 1, 1 << 60):
        with pytest.raises(InputError, match="scratch_size"):
            create_scratch(tmp_path, size)


def test_without_the_quick_ways_of_the_kernel_the_copy_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = create_scratch(tmp_path, GIB)

    def refuse(*_: object) -> int:
        raise OSError(18, "cross-device")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(os, "O_TMPFILE", os.O_WRONLY | os.O_DIRECTORY)  # fails with EISDIR
    slow = create_scratch(tmp_path, GIB)
    assert os.pread(slow.fd, 4 << 20, 0) == os.pread(quick.fd, 4 << 20, 0)
    assert os.fstat(slow.fd).st_nlink == 0
    quick.close()
    slow.close()


def test_a_full_disk_is_said_before_the_guest_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_HEADROOM", 1 << 62)
    with pytest.raises(TargetError, match="is full"):
        create_scratch(tmp_path, GIB)


def test_a_host_without_mke2fs_learns_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "helper_environment", lambda: {"PATH": "/nowhere"})
    with pytest.raises(TargetError, match="e2fsprogs"):
        create_scratch(tmp_path, GIB)
    assert not list(tmp_path.iterdir())
