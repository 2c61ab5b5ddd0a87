"""What stays in the image cache and what goes: its limit, full disks, what dead builders left."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from shims.microvm import image_store, images
from shims.microvm.images import CachedImage, ImageCache, ImageFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root]


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[ImageCache]:
    cache = ImageCache(tmp_path / "cache")
    yield cache
    await cache.close()


def _files(cache: ImageCache, suffix: str) -> list[Path]:
    return sorted(cache.directory.glob(f"*{suffix}"))


async def _settled(cache: ImageCache) -> None:
    """Wait until the helpers have synced and hashed what they built."""
    await asyncio.wait_for(asyncio.gather(*(child.exited for child in cache.helpers)), 20)


async def test_the_longest_unused_images_go_first_and_used_ones_not_at_all(
    cache: ImageCache, tmp_path: Path
) -> None:
    images: list[CachedImage] = []
    for number in range(4):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "file").write_bytes(os.urandom(100_000))
        images.append(await cache.image([str(directory)]))
    await _settled(cache)
    paths = [cache.directory / f"{key}.image" for key in _keys(cache, images)]
    for age, path in enumerate(paths):
        os.utime(path, (age, age))
    for image in images[1:]:
        image.close()
    removed = image_store.collect(cache.directory, limit=250_000)
    assert removed == [paths[1].stem, paths[2].stem]
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert not (cache.directory / f"{paths[1].stem}.json").exists()
    images[0].close()


def _keys(cache: ImageCache, images: list[CachedImage]) -> list[str]:
    return [
        next(path.stem for path in _files(cache, ".image") if path.stem.startswith(i.serial[2:]))
        for i in images
    ]


async def test_the_cache_keeps_below_its_limit_by_itself(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", limit=150_000)
    for number in range(3):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "file").write_bytes(os.urandom(100_000))
        (await cache.image([str(directory)])).close()
        await _settled(cache)
    assert len(_files(cache, ".image")) <= 2
    await cache.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def _fill(directory: Path, size: int) -> str:
    directory.mkdir()
    (directory / "file").write_bytes(os.urandom(size))
    return str(directory)


async def test_older_images_give_way_on_a_full_disk(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_KEEP_FREE", 0)
    cache = ImageCache(small_disk / "cache")
    for name in "abc":
        (await cache.image([_fill(tmp_path / name, 16 << 20)])).close()
        await _settled(cache)
    old = {path.stem for path in _files(cache, ".image")}
    (await cache.image([_fill(tmp_path / "large", 32 << 20)])).close()
    await _settled(cache)
    left = {path.stem for path in _files(cache, ".image")}
    assert len(left - old) == 1
    assert left & old < old
    with pytest.raises(ImageFailed, match="cannot make an image"):
        await cache.image([_fill(tmp_path / "larger", 80 << 20)])
    assert not _files(cache, ".part")
    await cache.close()


async def test_the_cache_leaves_some_of_the_disk_to_others(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_KEEP_FREE", 40 << 20)
    cache = ImageCache(small_disk / "cache")
    for name in "abc":
        (await cache.image([_fill(tmp_path / name, 16 << 20)])).close()
        await _settled(cache)
        assert len(_files(cache, ".image")) == 1
    monkeypatch.setattr(images, "_KEEP_FREE", 1 << 40)
    (await cache.image([_fill(tmp_path / "last", 1 << 20)])).close()  # what was just made stays
    await cache.close()


async def test_what_dead_builders_left_is_collected(cache: ImageCache, tmp_path: Path) -> None:
    (await cache.image([_fill(tmp_path / "layer", 1000)])).close()
    await _settled(cache)
    kept = sorted(os.listdir(cache.directory))
    for suffix in ("lock", "part", "123.note"):
        path = cache.directory / f"{'f' * 32}.{suffix}"
        path.touch()
        os.utime(path, (0, 0))
    (cache.directory / f"{'f' * 32}.124.note").touch()  # somebody is about to use it
    image_store.collect(cache.directory, 1 << 40)
    assert sorted(os.listdir(cache.directory)) == sorted([*kept, f"{'f' * 32}.124.note"])
