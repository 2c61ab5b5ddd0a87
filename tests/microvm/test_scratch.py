"""Writable disks: small on the host, right for the guest, gone with their last user."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from shims.core.errors import DeadlineExceeded, InputError, TargetError
from shims.microvm import scratch
from shims.microvm.scratch import SMALLEST, create_scratch

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


def _ask(fd: int, *argv: str) -> str:
    """Return what a program says of a disk, with which it must be content."""
    done = subprocess.run(
        [*argv, f"/proc/self/fd/{fd}"], pass_fds=[fd], capture_output=True, text=True,
        check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


async def test_a_disk_is_an_empty_file_system_that_takes_hardly_any_space(tmp_path: Path) -> None:
    disk = await create_scratch(tmp_path, 10 * GIB)
    assert os.fstat(disk.fd).st_size == disk.size == 10 * GIB
    assert os.fstat(disk.fd).st_blocks * 512 < 1 << 20
    assert os.fstat(disk.fd).st_nlink == 0
    _ask(disk.fd, "e2fsck", "-fn")
    about = _ask(disk.fd, "dumpe2fs")
    assert "has_journal" not in about
    assert "Reserved block count:     0" in about
    groups = [line for line in about.splitlines() if line.startswith("Group ")]
    # The guest's kernel need not write the inode tables, which would fill the sparse file.
    assert all("ITABLE_ZEROED" in line for line in groups)
    disk.close()


async def test_disks_are_independent_of_each_other_and_of_the_template(tmp_path: Path) -> None:
    one, two = await create_scratch(tmp_path, GIB), await create_scratch(tmp_path, GIB)
    os.pwrite(one.fd, b"mine", 4096)
    assert os.pread(two.fd, 4, 4096) != b"mine"
    three = await create_scratch(tmp_path, GIB)
    assert os.pread(three.fd, 1 << 20, 0) == os.pread(two.fd, 1 << 20, 0)
    for disk in (one, two, three):
        disk.close()
    (template,) = tmp_path.iterdir()
    assert template.suffix == ".ext4"


async def test_the_second_disk_of_a_size_takes_a_millisecond_or_so(tmp_path: Path) -> None:
    (await create_scratch(tmp_path, GIB)).close()
    took = []
    for _ in range(10):
        begin = time.perf_counter()
        (await create_scratch(tmp_path, GIB)).close()
        took.append(time.perf_counter() - begin)
    assert min(took) < 0.01


async def test_odd_sizes_are_rounded_up_and_absurd_ones_refused(tmp_path: Path) -> None:
    disk = await create_scratch(tmp_path, SMALLEST + 1)
    assert disk.size == SMALLEST + (1 << 20)
    disk.close()
    for size in (0, SMALLEST - 1, 1 << 60):
        with pytest.raises(InputError, match="scratch_size"):
            await create_scratch(tmp_path, size)


async def test_without_the_quick_ways_of_the_kernel_the_copy_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = await create_scratch(tmp_path, GIB)

    def refuse(*_: object) -> int:
        raise OSError(18, "cross-device")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(os, "O_TMPFILE", os.O_WRONLY | os.O_DIRECTORY)  # fails with EISDIR
    slow = await create_scratch(tmp_path, GIB)
    assert os.pread(slow.fd, 4 << 20, 0) == os.pread(quick.fd, 4 << 20, 0)
    assert os.fstat(slow.fd).st_nlink == 0
    quick.close()
    slow.close()


async def test_a_full_disk_is_said_before_the_guest_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_HEADROOM", 1 << 62)
    with pytest.raises(TargetError, match="is full"):
        await create_scratch(tmp_path, GIB)


async def test_a_host_without_mke2fs_learns_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "helper_environment", lambda: {"PATH": "/nowhere"})
    with pytest.raises(TargetError, match="e2fsprogs"):
        await create_scratch(tmp_path, GIB)
    assert not list(tmp_path.iterdir())


async def test_an_mke2fs_that_hangs_is_given_up_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, place = tmp_path / "tools", tmp_path / "scratch"
    tools.mkdir()
    (tools / "mke2fs").write_text("#!/bin/sh\nexec sleep 60\n")
    (tools / "mke2fs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(scratch, "_MKE2FS_TIMEOUT", 0.2)
    making = asyncio.create_task(create_scratch(place, GIB))
    turns = 0
    while not making.done():
        turns += 1
        await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded, match="no disk of"):
        await making
    assert turns > 10  # the event loop went on meanwhile
    assert not list(place.iterdir())


async def test_templates_of_many_sizes_and_dead_drafts_do_not_pile_up(tmp_path: Path) -> None:
    for name in (".0123456789abcdef", ".fresh"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".0123456789abcdef", (0, 0))
    for number in range(10):
        (await create_scratch(tmp_path, SMALLEST + (number << 20))).close()
        if number == 5:
            (await create_scratch(tmp_path, SMALLEST)).close()  # in use again
    sizes = {int(path.stem.rpartition("-")[2]) for path in tmp_path.glob("*.ext4")}
    assert sizes == {SMALLEST + (number << 20) for number in (0, *range(3, 10))}
    assert not (tmp_path / ".0123456789abcdef").exists()
    assert (tmp_path / ".fresh").exists()
