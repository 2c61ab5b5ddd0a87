"""containerd's mounts to attachments: each kind, each refusal, and that nothing is left over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from shims.core.errors import InputError
from shims.microvm.images import ImageCache
from shims.microvm.rootfs import Means, needs_share, prepare_rootfs, split_layers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Mount:
    type: str
    source: str = ""
    options: tuple[str, ...] = ()
    target: str = ""


@pytest.fixture
async def means(tmp_path: Path) -> AsyncIterator[Means]:
    cache = ImageCache(tmp_path / "images")
    yield Means(cache, tmp_path / "scratch", tmp_path / "run", scratch_size=64 << 20)
    await cache.close()


@pytest.fixture(autouse=True)
async def nothing_is_left_open(means: Means) -> AsyncIterator[None]:
    before = _open_files()
    yield
    await means.cache.close()
    assert _open_files() == before


def _open_files() -> list[str]:
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return sorted(name for name in names if name.startswith("/") and "/proc/" not in name)


def _overlay(base: Path, *options: str, upper: str = "") -> Mount:
    for name in ("l1", "l2", "upper", "work"):
        (base / name).mkdir()
    (base / "l2/file").write_text("x")
    if upper:
        (base / "upper" / upper).write_text("y")
    named = (f"upperdir={base}/upper", f"workdir={base}/work")
    return Mount("overlay", "overlay", ("index=off", *named, f"lowerdir={base}/l1:{base}/l2",
                                        *options))  # fmt: skip


async def test_an_overlay_is_an_image_below_a_scratch_disk(means: Means, tmp_path: Path) -> None:
    prepared = await prepare_rootfs([_overlay(tmp_path)], "c1", means)
    rootfs = prepared.rootfs
    (layer,) = rootfs.layers
    assert rootfs.upper is not None
    assert (layer.kind, layer.fstype) == ("disk", "erofs")
    assert (rootfs.upper.kind, rootfs.upper.fstype) == ("disk", "ext4")
    assert (rootfs.share, rootfs.readonly) == (None, False)
    assert [(disk.serial, disk.readonly) for disk in prepared.disks] == [
        (layer.name, True), (rootfs.upper.name, False),
    ]  # fmt: skip
    assert all(len(disk.serial) <= 20 for disk in prepared.disks)
    assert [disk.keep_flushes for disk in prepared.disks] == [True, False]
    assert os.fstat(prepared.disks[1].fd).st_size == 64 << 20
    await prepared.close()
    await prepared.close()


async def test_what_the_upper_layer_holds_is_a_layer_of_its_own(
    means: Means, tmp_path: Path
) -> None:
    prepared = await prepare_rootfs([_overlay(tmp_path, upper="left over")], "c1", means)
    above, below = prepared.rootfs.layers
    assert above.name.startswith("x-")
    assert below.name.startswith("e-")
    assert b"left over" in os.pread(prepared.disks[1].fd, 1 << 16, 0)
    await prepared.close()


async def test_a_read_only_root_needs_no_disk(means: Means, tmp_path: Path) -> None:
    prepared = await prepare_rootfs([_overlay(tmp_path)], "c1", means, readonly=True)
    assert (prepared.rootfs.upper, prepared.rootfs.readonly) == (None, True)
    assert len(prepared.disks) == 1
    await prepared.close()


async def test_two_containers_of_an_image_share_its_disk(means: Means, tmp_path: Path) -> None:
    mount = _overlay(tmp_path)
    one = await prepare_rootfs([mount], "c1", means)
    two = await prepare_rootfs([mount], "c2", means)
    assert one.rootfs.layers == two.rootfs.layers
    assert one.rootfs.upper != two.rootfs.upper
    await one.close()
    await two.close()


async def test_a_view_is_an_image(means: Means, tmp_path: Path) -> None:
    (tmp_path / "view").mkdir()
    mounts = [Mount("bind", str(tmp_path / "view"), ("rbind", "ro"))]
    assert not needs_share(mounts)
    prepared = await prepare_rootfs(mounts, "c1", means)
    assert prepared.rootfs.readonly
    assert [layer.fstype for layer in prepared.rootfs.layers] == ["erofs"]
    await prepared.close()


@pytest.mark.virtiofs
@pytest.mark.parametrize("how", ["bind", "root.path"])
async def test_a_writable_directory_is_shared(means: Means, tmp_path: Path, how: str) -> None:
    (tmp_path / "dir").mkdir()
    mounts = [Mount("bind", str(tmp_path / "dir"), ("rbind", "rw"))] if how == "bind" else []
    assert needs_share(mounts)
    prepared = await prepare_rootfs(mounts, "c1", means, directory=str(tmp_path / "dir"))
    (share,) = prepared.shares
    assert prepared.rootfs.share is not None
    assert (prepared.rootfs.share.kind, prepared.rootfs.share.name) == ("share", share.tag)
    assert prepared.disks == []
    await prepared.close()
    assert share.exited.done()


@pytest.mark.virtiofs
async def test_a_read_only_directory_is_a_layer_that_the_host_protects(
    means: Means, tmp_path: Path
) -> None:
    (tmp_path / "dir").mkdir()
    prepared = await prepare_rootfs([], "c1", means, directory=str(tmp_path / "dir"), readonly=True)
    assert prepared.rootfs.share is None
    assert prepared.rootfs.layers[0].kind == "share"
    assert prepared.shares[0].readonly
    await prepared.close()


@pytest.mark.parametrize(
    ("fstype", "options", "writable"),
    [("ext4", ("loop",), True), ("ext4", ("ro",), False), ("erofs", ("loop",), False)],
)
async def test_a_block_image_passes_through(
    means: Means, tmp_path: Path, fstype: str, options: tuple[str, ...], writable: bool
) -> None:
    (tmp_path / "image").write_bytes(bytes(4096))
    mount = Mount(fstype, str(tmp_path / "image"), options)
    prepared = await prepare_rootfs([mount], "c1", means)
    disk = prepared.disks[0]
    assert os.path.samestat(os.fstat(disk.fd), os.stat(mount.source))
    assert disk.readonly is not writable
    source = prepared.rootfs.share if writable else prepared.rootfs.layers[0]
    assert source is not None
    assert (source.kind, source.name, source.fstype) == ("disk", disk.serial, fstype)
    await prepared.close()


@pytest.mark.parametrize(
    ("mounts", "says"),
    [
        ([Mount("overlay", options=("upperdir=/tmp",))], "a lowerdir= option"),
        ([Mount("overlay", options=("lowerdir=/nowhere",))], "No such file"),
        ([Mount("bind", "/etc/passwd", ("ro",))], "a directory"),
        ([Mount("ext4", "/nowhere")], "No such file"),
        ([Mount("ext4", "/tmp")], "disk image or block device"),
        ([Mount("xfs", "/dev/null")], "disk image or block device"),
        ([Mount("zfs", "tank/x")], "overlay, bind, ext4"),
        ([Mount("overlay"), Mount("bind")], "a single mount"),
        ([Mount("bind", "/tmp", ("ro",), target="/sub")], "a single mount"),
        ([], "root.path"),
    ],
)
async def test_what_a_vm_cannot_have_is_refused_by_name(
    means: Means, mounts: list[Mount], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        await prepare_rootfs(mounts, "c1", means)
    assert caught.value.field.startswith("rootfs")


async def test_a_failure_half_way_leaves_nothing(means: Means, tmp_path: Path) -> None:
    mount = _overlay(tmp_path, upper="something")
    broken = Means(means.cache, means.scratch_dir, means.run_dir, scratch_size=1)
    with pytest.raises(InputError, match="scratch_size"):
        await prepare_rootfs([mount], "c1", broken)


def test_lower_directories_are_split_as_overlay_splits_them() -> None:
    assert split_layers("/a:/b") == ["/a", "/b"]
    assert split_layers(r"/a\:b:/c\\d") == ["/a:b", r"/c\d"]
    assert split_layers("") == []
