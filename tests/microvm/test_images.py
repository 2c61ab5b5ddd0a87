"""erofs images of layer chains: what is in them, who builds them, and what becomes of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shims.core.errors import DeadlineExceeded, InputError
from shims.microvm import image_store
from shims.microvm.images import CachedImage, ImageCache, ImageFailed
from tests.microvm import trees

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.root]
HERE = Path(__file__).parent


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[ImageCache]:
    cache = ImageCache(tmp_path / "cache")
    yield cache
    await cache.close()


@pytest.fixture
def layer(tmp_path: Path) -> str:
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer/file").write_text("content")
    return str(tmp_path / "layer")


def _files(cache: ImageCache, suffix: str) -> list[Path]:
    return sorted(cache.directory.glob(f"*{suffix}"))


def _dump(image: CachedImage, what: str) -> str:
    return subprocess.run(
        ["dump.erofs", what, f"/proc/self/fd/{image.fd}"], pass_fds=[image.fd],
        capture_output=True, text=True, check=True, timeout=10,
    ).stdout  # fmt: skip


async def _settled(cache: ImageCache) -> None:
    """Wait until the helpers have synced and hashed what they built."""
    await asyncio.wait_for(asyncio.gather(*(child.exited for child in cache.helpers)), 20)


def _compare(image: Path, place: Path, layers: list[str]) -> dict[str, dict[str, Any]]:
    """Return how the image and the layers look, each by path."""
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("the host's kernel has no erofs")
    place.mkdir()
    program = [sys.executable, str(HERE / "trees.py"), str(image), str(place), *layers]
    done = subprocess.run(
        ["unshare", "--mount", *program], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    both: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return both


async def test_an_image_shows_what_runc_shows(cache: ImageCache, tmp_path: Path) -> None:
    layers = trees.make_layers(tmp_path)
    image = await cache.image(layers)
    assert image.fstype == "erofs"
    both = _compare(_files(cache, ".image")[0], tmp_path / "mounts", layers)
    overlay, seen = both["overlay"], both["image"]
    assert sorted(seen) == sorted(overlay)
    for name in overlay:
        assert seen[name] == overlay[name], name
    assert "opaque/new" in seen
    assert not {"deleted", "deleted-later", "gone", "opaque/hidden"} & set(seen)
    assert seen["file"]["same as"] == seen["dir/hard-link"]["same as"]
    # 64 MiB of hole are neither written nor kept.
    assert image.size < 24 << 20
    image.close()


@pytest.mark.parametrize("reason", ["a name of 255 bytes", "no mkfs.erofs", "a huge hole"])
async def test_what_mkfs_erofs_cannot_do_becomes_ext4(
    cache: ImageCache, tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = trees.make_layers(tmp_path)
    if reason == "no mkfs.erofs":
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "mkfs.erofs").write_text("#!/bin/sh\necho not today; exit 1\n")
        (tools / "mkfs.erofs").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    elif reason == "a huge hole":
        os.truncate(Path(layers[2], "sparse"), 300 << 20)
    else:
        Path(layers[0], os.fsdecode(trees.LONGEST)).write_text("long")
    image = await cache.image(layers)
    assert image.fstype == "ext4" or reason == "a name of 255 bytes"
    both = _compare(_files(cache, ".image")[0], tmp_path / "mounts", layers)
    overlay, seen = both["overlay"], both["image"]
    assert sorted(seen) == sorted(overlay)
    for name, entry in overlay.items():
        if image.fstype == "ext4" and "mtime" in entry:
            for one in (entry, seen[name]):
                one["mtime"] //= 10**9
        if name != ".":
            assert seen[name] == entry, name
    again = await cache.image(layers)
    assert again.serial == image.serial
    for one in (image, again):
        one.close()


async def test_holes_cost_neither_time_nor_space(cache: ImageCache, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    with (layer / "lastlog").open("wb") as file:
        file.truncate(64 << 30)
        file.seek(32 << 30)
        file.write(b"an island")
    image = await cache.image([str(layer)], timeout=10)
    assert os.fstat(image.fd).st_blocks * 512 < 16 << 20
    image.close()


async def test_the_same_layers_give_the_same_bytes(tmp_path: Path) -> None:
    layers = trees.make_layers(tmp_path / "layers")
    hashes = []
    for name in "ab":
        cache = ImageCache(tmp_path / name)
        (await cache.image(layers)).close()
        hashes.append(hashlib.sha256(_files(cache, ".image")[0].read_bytes()).hexdigest())
        await cache.close()
    assert hashes[0] == hashes[1]


async def test_a_hundred_layers_are_no_problem(cache: ImageCache, tmp_path: Path) -> None:
    base = tmp_path / ("deep" * 40)
    for number in range(100):
        (base / str(number)).mkdir(parents=True)
        (base / str(number) / f"file{number}").write_text(str(number))
    image = await cache.image([str(base / str(number)) for number in range(100)])
    assert "inode count:                       101" in _dump(image, "-s")
    image.close()


async def test_who_asks_again_gets_the_cached_image(cache: ImageCache, layer: str) -> None:
    one = await cache.image([layer])
    before = os.fstat(one.fd).st_ino
    two = await cache.image([layer])
    assert two.serial == one.serial
    assert len(one.serial) <= 20  # SCSI's limit
    assert os.fstat(two.fd).st_ino == before
    assert two.fd != one.fd
    one.close()
    two.close()


async def test_a_changed_layer_is_another_image(cache: ImageCache, layer: str) -> None:
    one = await cache.image([layer])
    Path(layer, "more").write_text("!")
    two = await cache.image([layer])
    assert one.serial != two.serial
    one.close()
    two.close()


async def test_many_tasks_share_one_build(cache: ImageCache, layer: str) -> None:
    found = await asyncio.gather(*(cache.image([layer]) for _ in range(10)))
    assert len({os.fstat(image.fd).st_ino for image in found}) == 1
    assert cache.builds == 1
    for image in found:
        image.close()


async def test_one_caller_that_gives_up_does_not_disturb_another(
    cache: ImageCache, layer: str
) -> None:
    patient = asyncio.create_task(cache.image([layer]))
    hasty = asyncio.create_task(cache.image([layer], timeout=0.000001))
    with pytest.raises(DeadlineExceeded):
        await hasty
    (await patient).close()


ASK = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from shims.microvm.images import ImageCache
async def main():
    cache = ImageCache(Path(sys.argv[2]))
    sys.stdin.readline()
    image = await cache.image(sys.argv[3:])
    print(image.serial, flush=True)
    await asyncio.to_thread(sys.stdin.read)  # in use, as by a VM, until we are told
    image.close()
    await cache.close()
asyncio.run(main())
"""


async def test_eight_processes_that_ask_at_once_build_once_and_keep_nobody_waiting(
    cache: ImageCache, tmp_path: Path
) -> None:
    layers = trees.make_layers(tmp_path)
    argv = [sys.executable, "-c", ASK, str(HERE.parents[1]), str(cache.directory), *layers]
    crowd = [
        await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(8)
    ]
    for process in crowd:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
    try:
        async with asyncio.timeout(30):
            # All of them hold the image while the last of them still asks.
            serials = [await process.stdout.readline() for process in crowd if process.stdout]
        assert len(set(serials)) == 1
        assert serials[0].startswith(b"e-")
    finally:
        await asyncio.wait_for(asyncio.gather(*(process.communicate(b"") for process in crowd)), 30)
    (image,) = _files(cache, ".image")
    # Every later builder found the image under its lock: the inode was published once.
    assert not _files(cache, ".part")
    assert not _files(cache, ".lock")
    assert image.stat().st_nlink == 1


@pytest.mark.parametrize("harm", ["truncated", "magic", "no note", "note", "crashed host"])
async def test_a_damaged_image_is_built_anew(cache: ImageCache, layer: str, harm: str) -> None:
    one = await cache.image([layer])
    await _settled(cache)
    one.close()
    image, note = _files(cache, ".image")[0], _files(cache, ".json")[0]
    match harm:
        case "truncated":
            os.truncate(image, image.stat().st_size - 4096)
        case "magic":
            with image.open("r+b") as file:
                file.seek(1024)
                file.write(bytes(4))
        case "no note":
            note.unlink()
        case "note":
            note.write_text("{")
        case _:
            note.write_text(json.dumps({**json.loads(note.read_text()), "boot": "another"}))
    fresh = await cache.image([layer])
    assert cache.builds == 2
    assert image_store.intact_fstype(cache.directory, image.stem, fresh.fd) == "erofs"
    fresh.close()


async def test_verify_reads_what_opening_does_not(cache: ImageCache, layer: str) -> None:
    (await cache.image([layer])).close()
    await _settled(cache)
    assert image_store.verify(cache.directory) == {}
    (path,) = _files(cache, ".image")
    with path.open("r+b") as file:
        file.seek(1024 + 512)
        file.write(b"flip")
    assert list(image_store.verify(cache.directory).values()) == ["its content is not as published"]
    assert not _files(cache, ".image")


async def test_a_builder_that_is_killed_leaves_nothing_in_the_way(
    cache: ImageCache, tmp_path: Path
) -> None:
    layers = trees.make_layers(tmp_path)
    task = asyncio.create_task(cache.image(layers))
    while not _files(cache, ".part"):
        await asyncio.sleep(0)  # the helper has its lock; there is no event for that
        assert not task.done()
    (helper,) = cache.helpers
    os.kill(helper.pid, signal.SIGKILL)
    with pytest.raises(ImageFailed, match="died"):
        await task
    (await cache.image(layers)).close()
    assert not _files(cache, ".part")


async def test_a_layer_of_its_own_keeps_its_whiteouts(cache: ImageCache, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "dir").mkdir(parents=True)
    os.mknod(upper / "gone", 0o020000, 0)
    os.setxattr(upper / "dir", "trusted.overlay.opaque", b"y")
    image = await cache.layer(str(upper), "x-1")
    assert os.listdir(cache.directory) == [".mount"]
    assert "char dev" in _dump(image, "--path=/gone")
    assert b"overlay.opaque" in os.pread(image.fd, 1 << 16, 0)
    image.close()


async def test_what_is_no_layer_is_refused_by_name(cache: ImageCache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lowerdir"):
        await cache.image([str(tmp_path / "absent")])
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageFailed, match="not a directory"):
        await cache.image([str(tmp_path / "file")])
    with pytest.raises(InputError, match="at least one layer"):
        await cache.image([])


async def test_no_mount_is_seen_on_the_host(cache: ImageCache, layer: str) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    (await cache.image([layer])).close()
    assert Path("/proc/self/mountinfo").read_text() == before
