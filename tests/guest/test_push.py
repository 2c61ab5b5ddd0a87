"""Volumes pushed into the guest: order of arrival, updates as kubelet makes them, limits."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protos.gen.voidbox.guest.v1.guest_pb2 import WriteFileRequest
from shims.core.errors import InputError, Unreachable
from shims.guest import inotify, push
from shims.guest.push import MOST_ENTRIES, MOST_FILE_BYTES, TooLarge, push_volume, scan

if TYPE_CHECKING:
    from shims.guest.link import TreeEntry

Recorded = list[tuple[str, str]]


class Guest:
    """Applies what it is told to a directory, and remembers the order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: Recorded = []
        self.broken = False
        self.changed = asyncio.Condition()

    def _place(self, path: str) -> str:
        return str(self.root) + path

    async def _note(self, what: str, path: str) -> None:
        if self.broken:
            raise Unreachable("the guest is gone")
        async with self.changed:
            self.log.append((what, path))
            self.changed.notify_all()

    async def write_file(
        self, path: str, data: bytes, *, mode: int, uid: int, gid: int, in_place: bool,
        timeout: float,
    ) -> None:  # fmt: skip
        assert in_place
        os.makedirs(os.path.dirname(self._place(path)), exist_ok=True)
        Path(self._place(path)).write_bytes(data)
        os.chmod(self._place(path), mode)
        await self._note("in place", path)

    async def write_tree(self, root: str, entries: list[TreeEntry], *, timeout: float) -> None:
        for entry in entries:
            path = self._place(os.path.join(root, entry.path) if entry.path else root)
            if entry.kind == WriteFileRequest.KIND_DIRECTORY:
                os.makedirs(path, exist_ok=True)
                os.chmod(path, entry.mode)
                await self._note("dir", entry.path)
            elif entry.kind == WriteFileRequest.KIND_SYMLINK:
                os.symlink(entry.data, path + ".new")
                os.rename(path + ".new", path)
                await self._note("link", entry.path)
            else:
                Path(path + ".new").write_bytes(entry.data)
                os.chmod(path + ".new", entry.mode)
                os.rename(path + ".new", path)
                await self._note("file", entry.path)

    async def remove_file(self, path: str, *, recursive: bool, timeout: float) -> None:
        place = self._place(path)
        if os.path.isdir(place) and not os.path.islink(place):
            for directory, directories, files in os.walk(place, topdown=False):
                for name in files:
                    os.unlink(os.path.join(directory, name))
                for name in directories:
                    below = os.path.join(directory, name)
                    os.unlink(below) if os.path.islink(below) else os.rmdir(below)
            os.rmdir(place)
        elif os.path.lexists(place):
            os.unlink(place)
        await self._note("gone", path)

    async def until(self, what: str, path: str) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: (what, path) in self.log)


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    (tmp_path / "guest").mkdir()
    return Guest(tmp_path / "guest")


def _publish(volume: Path, version: str, content: dict[str, str]) -> None:
    """Write as kubelet's AtomicWriter does: a new directory, then one rename."""
    directory = volume / f"..{version}"
    directory.mkdir()
    for name, text in content.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o640)
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    os.symlink(directory.name, volume / "..data_tmp")
    old = os.readlink(volume / "..data") if (volume / "..data").is_symlink() else ""
    os.rename(volume / "..data_tmp", volume / "..data")
    if old:
        for path in (volume / old).iterdir():
            path.unlink()
        (volume / old).rmdir()


async def test_a_config_map_arrives_and_its_links_last(guest: Guest, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o711)
    _publish(volume, "v1", {"key": "one", "other": "two"})
    async with push_volume(guest, str(volume), "/v", report=pytest.fail):
        assert guest.log == [
            ("dir", ""), ("dir", "..v1"), ("file", "..v1/key"), ("file", "..v1/other"),
            ("link", "..data"), ("link", "key"), ("link", "other"),
        ]  # fmt: skip
        inside = guest.root / "v"
        assert (inside / "key").read_text() == "one"
        assert stat.S_IMODE((inside / "..v1/key").stat().st_mode) == 0o640
        assert stat.S_IMODE(inside.stat().st_mode) == 0o711


async def test_an_update_is_one_swap_of_the_link(guest: Guest, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    _publish(volume, "v1", {"key": "one"})
    async with push_volume(guest, str(volume), "/v", report=pytest.fail):
        guest.log.clear()
        _publish(volume, "v2", {"key": "two"})
        await guest.until("gone", "/v/..v1")
        assert [entry for entry in guest.log if entry[0] != "dir"] == [
            ("file", "..v2/key"), ("link", "..data"), ("gone", "/v/..v1"),
        ]  # fmt: skip
        assert (guest.root / "v/key").read_text() == "two"
        assert not (guest.root / "v/..v1").exists()


async def test_changes_deep_inside_are_noticed(guest: Guest, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "a/b").mkdir(parents=True)
    async with push_volume(guest, str(volume), "/v", report=pytest.fail):
        (volume / "a/b/late").write_text("x")
        await guest.until("file", "a/b/late")
        (volume / "a/b/c").mkdir()
        await guest.until("dir", "a/b/c")
        (volume / "a/b/c/later").write_text("y")
        await guest.until("file", "a/b/c/later")
        guest.log.clear()
        (volume / "a/b/late").chmod(0o600)
        await guest.until("file", "a/b/late")
        (volume / "a/b/late").unlink()
        await guest.until("gone", "/v/a/b/late")


async def test_a_directory_may_become_a_file_and_back(guest: Guest, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "thing/below").mkdir(parents=True)
    async with push_volume(guest, str(volume), "/v", report=pytest.fail):
        (volume / "thing/below").rmdir()
        (volume / "thing").rmdir()
        (volume / "thing").write_text("now a file")
        await guest.until("file", "thing")
        guest.log.clear()
        (volume / "thing").unlink()
        (volume / "thing").mkdir()
        await guest.until("dir", "thing")
    assert (guest.root / "v/thing").is_dir()


async def test_a_single_file_keeps_its_inode(guest: Guest, tmp_path: Path) -> None:
    source = tmp_path / "resolv.conf"
    source.write_text("nameserver 10.0.0.1\n")
    async with push_volume(guest, str(source), "/files/0", report=pytest.fail):
        before = (guest.root / "files/0").stat().st_ino
        guest.log.clear()
        source.write_text("nameserver 10.0.0.2\n")
        await guest.until("in place", "/files/0")
        while (guest.root / "files/0").read_text() != "nameserver 10.0.0.2\n":
            guest.log.clear()  # truncation and content may be seen apart
            await guest.until("in place", "/files/0")
        assert (guest.root / "files/0").stat().st_ino == before
        guest.log.clear()
        replacement = tmp_path / "new"
        replacement.write_text("nameserver 10.0.0.3\n")
        replacement.rename(source)
        await guest.until("in place", "/files/0")


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_a_source_that_is_a_link_is_kept_in_step(
    guest: Guest, tmp_path: Path, kind: str
) -> None:
    """Both what it leads to and where it leads to: /etc/resolv.conf is one on many hosts."""
    versions = [tmp_path / "one", tmp_path / "two"]
    for version in versions:
        if kind == "directory":
            version.mkdir()
    link = tmp_path / "link"
    link.symlink_to("one")
    files = [version / "f" if kind == "directory" else version for version in versions]
    event = ("file", "f") if kind == "directory" else ("in place", "/v")
    inside = guest.root / ("v/f" if kind == "directory" else "v")
    for file in files:
        file.write_text(f"first of {file}")

    async def until(text: str) -> None:
        while inside.read_text() != text:
            guest.log.clear()
            await guest.until(*event)

    def replace(file: Path) -> str:
        changed = file.with_name("changed")
        changed.write_text(f"second of {file}")
        changed.rename(file)
        return f"second of {file}"

    async with push_volume(guest, str(link), "/v", report=pytest.fail):
        await until(replace(files[0]))
        os.symlink("two", tmp_path / "new")
        os.rename(tmp_path / "new", link)
        await until(f"first of {files[1]}")
        await until(replace(files[1]))


async def test_odd_names_and_odd_files(guest: Guest, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    odd = [b"new\nline", b"\xff\xfe", b"-dash", b"n" * 250]
    for name in odd:
        (volume / os.fsdecode(name)).write_bytes(name)
    os.mkfifo(volume / "fifo")
    os.symlink("/etc/shadow", volume / "link")
    async with push_volume(guest, str(volume), "/v", report=pytest.fail):
        inside = os.fsencode(guest.root / "v")
        assert sorted(os.listdir(inside)) == sorted([*odd, b"link"])
        assert os.readlink(inside + b"/link") == b"/etc/shadow"


async def test_what_goes_wrong_later_is_reported_without_content(
    guest: Guest, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    told: asyncio.Queue[str] = asyncio.Queue()
    async with push_volume(guest, str(volume), "/v", report=told.put_nowait):
        (volume / "huge").write_bytes(b"secret" * MOST_FILE_BYTES)
        async with asyncio.timeout(10):
            message = await told.get()
        assert "huge" in message
        assert "secret" not in message
        (volume / "huge").unlink()
        (volume / "small").write_text("fine again")
        await guest.until("file", "small")
        guest.broken = True
        (volume / "small").write_text("secret")
        async with asyncio.timeout(10):
            while "the guest is gone" not in message:
                message = await told.get()


async def test_a_copy_that_failed_is_tried_again_by_itself(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "_FIRST_PAUSE", 0.01)
    volume = tmp_path / "volume"
    volume.mkdir()
    told: asyncio.Queue[str] = asyncio.Queue()
    async with push_volume(guest, str(volume), "/v", report=told.put_nowait), asyncio.timeout(10):
        guest.broken = True
        (volume / "late").write_text("x")
        assert "the guest is gone" in await told.get()
        guest.broken = False
        await guest.until("file", "late")
        assert told.empty()  # once, not for each attempt


async def test_what_can_no_longer_be_watched_is_copied_all_the_same(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "_FIRST_PAUSE", 0.01)
    volume = tmp_path / "volume"
    volume.mkdir()
    told: asyncio.Queue[str] = asyncio.Queue()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with push_volume(guest, str(volume), "/v", report=told.put_nowait), asyncio.timeout(10):
        with monkeypatch.context() as limit:
            limit.setattr(inotify.Watch, "follow", full)
            (volume / "below").mkdir()
            await guest.until("dir", "below")
            assert "No space left" in await told.get()
        (volume / "below/late").write_text("x")
        await guest.until("file", "below/late")


def test_what_is_too_large_is_to_be_shared_instead(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_bytes(bytes(MOST_FILE_BYTES))
    assert len(scan(str(volume))) == 2
    (volume / "file").write_bytes(bytes(MOST_FILE_BYTES + 1))
    with pytest.raises(TooLarge, match=r"volume/file: got .1048577 bytes"):
        scan(str(volume))
    (volume / "file").unlink()
    for number in range(17):
        (volume / str(number)).write_bytes(bytes(MOST_FILE_BYTES))
    with pytest.raises(TooLarge, match="more in all"):
        scan(str(volume))
    for path in volume.iterdir():
        path.unlink()
    for number in range(MOST_ENTRIES):
        (volume / str(number)).touch()
    with pytest.raises(TooLarge, match="more files"):
        scan(str(volume))


def test_a_path_that_the_guest_does_not_take_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(15):
        name = "n" * 250
        os.mkdir(name)
        os.chdir(name)
    monkeypatch.undo()
    with pytest.raises(TooLarge, match=r"got .a path of 3513 bytes"):
        scan(str(tmp_path))


def test_what_is_no_volume_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path / "absent"):
        with pytest.raises(InputError, match="volume"):
            scan(str(path))


async def test_leaving_stops_the_watch(guest: Guest, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    async with push_volume(guest, str(volume), "/v", report=pytest.fail):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
