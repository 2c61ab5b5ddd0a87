"""Files of the VM: whole or not at all, below /run/void only, and never through a link."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.guest.link import TreeEntry
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError

if TYPE_CHECKING:
    from shims.guest.link import GuestLink
    from tests.guest.init.harness import Guest

pytestmark = pytest.mark.root

_KINDS = pb.WriteFileRequest


async def test_a_file_arrives_with_all_that_belongs_to_it(guest: Guest) -> None:
    link = await guest.connect()
    data = os.urandom((3 << 20) + 17)
    await link.write_file("/run/void/files/c/0/deep/er", data, mode=0o4751, uid=12, gid=34)
    path = guest.root / "run/void/files/c/0/deep/er"
    facts = path.stat()
    assert path.read_bytes() == data
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (0o4751, 12, 34)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert await link.read_file("/run/void/files/c/0/deep/er") == data
    assert list((guest.root / "run/void/.staging").iterdir()) == []


async def test_a_file_is_replaced_whole_and_by_rename(guest: Guest) -> None:
    link = await guest.connect()
    path = guest.root / "run/void/x"
    await link.write_file("/run/void/x", b"old")
    inode = path.stat().st_ino
    request = _KINDS(path=b"/run/void/x", kind=_KINDS.KIND_FILE, data=b"ne")
    await link._call("WriteFile", request, pb.Empty, 5)
    assert path.read_bytes() == b"old"
    request = _KINDS(path=b"/run/void/x", kind=_KINDS.KIND_FILE, data=b"w", offset=2, last=True)
    await link._call("WriteFile", request, pb.Empty, 5)
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != inode


async def test_in_place_keeps_the_inode(guest: Guest) -> None:
    link = await guest.connect()
    path = guest.root / "run/void/x"
    await link.write_file("/run/void/x", b"a longer text than before")
    inode = path.stat().st_ino
    await link.write_file("/run/void/x", b"short", in_place=True)
    assert path.read_bytes() == b"short"
    assert path.stat().st_ino == inode


async def test_a_piece_at_the_wrong_place_is_refused(link: GuestLink) -> None:
    request = _KINDS(path=b"/run/void/x", kind=_KINDS.KIND_FILE, data=b"abc")
    await link._call("WriteFile", request, pb.Empty, 5)
    request = _KINDS(path=b"/run/void/x", kind=_KINDS.KIND_FILE, data=b"d", offset=7, last=True)
    with pytest.raises(RpcError):
        await link._call("WriteFile", request, pb.Empty, 5)


@pytest.mark.parametrize("kind", [_KINDS.KIND_FILE, _KINDS.KIND_SYMLINK])
async def test_a_write_that_failed_leaves_nothing_in_the_way(
    guest: Guest, kind: pb.WriteFileRequest.Kind
) -> None:
    link = await guest.connect()
    path = guest.root / "run/void/x"
    path.mkdir()
    entries = [TreeEntry(path="x", kind=kind, data=b"target")]
    with pytest.raises(RpcError, match="directory"):
        await link.write_tree("/run/void", entries)
    assert list((guest.root / "run/void/.staging").iterdir()) == []
    path.rmdir()
    await link.write_file("/run/void/x", b"later")
    assert path.read_bytes() == b"later"


async def test_a_path_may_be_as_long_as_the_kernel_takes(guest: Guest) -> None:
    link = await guest.connect()
    path = "/run/void" + 15 * ("/" + "n" * 250) + "/" + "e" * 200
    await link.write_file(path, b"deep")
    assert await link.read_file(path) == b"deep"
    with pytest.raises(RpcError) as caught:
        await link.write_file(path + "/" + "x" * 200, b"")
    assert caught.value.code == Code.INVALID_ARGUMENT


async def test_a_volume_as_kubernetes_lays_it_out(guest: Guest) -> None:
    link = await guest.connect()
    root = "/run/void/files/c/1"
    await link.write_tree(
        root,
        [
            TreeEntry(path="", kind=_KINDS.KIND_DIRECTORY, mode=0o1777),
            TreeEntry(path="..1", kind=_KINDS.KIND_DIRECTORY, mode=0o755),
            TreeEntry(path="..1/key", data=b"one", mode=0o400),
            TreeEntry(path="..data", kind=_KINDS.KIND_SYMLINK, data=b"..1"),
            TreeEntry(path="key", kind=_KINDS.KIND_SYMLINK, data=b"..data/key"),
        ],
    )
    here = guest.root / root.lstrip("/")
    assert (here / "key").read_bytes() == b"one"
    assert stat.S_IMODE(here.stat().st_mode) == 0o1777
    await link.write_file(f"{root}/..2/key", b"two")
    swap = [TreeEntry(path="..data", kind=_KINDS.KIND_SYMLINK, data=b"..2")]
    await link.write_tree(root, swap)
    assert (here / "key").read_bytes() == b"two"
    await link.remove_file(f"{root}/..1", recursive=True)
    assert not (here / "..1").exists()


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/run/void", "/run/void/../x", "/run/void/./x", "/run/void//x", "run/void/x",
     "/run/void/a/../../x", "/run/void/.staging/x", "/run/void/link/x", "/run/void/x\0y"],
)  # fmt: skip
async def test_nothing_is_written_elsewhere(guest: Guest, path: str) -> None:
    link = await guest.connect()
    (guest.root / "elsewhere").mkdir()
    (guest.root / "run/void/link").symlink_to(guest.root / "elsewhere")
    with pytest.raises(RpcError):
        await link.write_file(path, b"no")
    assert list((guest.root / "elsewhere").iterdir()) == []


async def test_a_link_in_the_last_place_is_replaced_not_followed(guest: Guest) -> None:
    link = await guest.connect()
    victim = guest.root / "victim"
    victim.write_text("kept")
    (guest.root / "run/void/x").symlink_to(victim)
    with pytest.raises(RpcError):
        await link.write_file("/run/void/x", b"no", in_place=True)
    await link.write_file("/run/void/x", b"new")
    assert victim.read_text() == "kept"
    assert (guest.root / "run/void/x").read_bytes() == b"new"


async def test_removal_takes_everything_and_follows_nothing(guest: Guest) -> None:
    link = await guest.connect()
    kept = guest.root / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top = guest.root / "run/void/tree"
    deep = top
    for _ in range(60):
        deep = deep / "d"
        deep.mkdir(parents=True)
        (deep / "file").touch()
    (top / "link").symlink_to(kept)
    with pytest.raises(RpcError) as caught:
        await link.remove_file("/run/void/tree")
    assert caught.value.code == Code.FAILED_PRECONDITION
    await link.remove_file("/run/void/tree", recursive=True)
    assert not top.exists()
    assert (kept / "file").exists()
    await link.remove_file("/run/void/tree", recursive=True)
    await link.remove_file("/run/void/no/such/parent")


async def test_reading_takes_regular_files_only(guest: Guest) -> None:
    link = await guest.connect()
    os.mkfifo(guest.root / "fifo")
    (guest.root / "empty").touch()
    assert await link.read_file("/empty") == b""
    refused = {
        "/fifo": Code.INVALID_ARGUMENT,
        "/run": Code.INVALID_ARGUMENT,
        "/nothing": Code.NOT_FOUND,
        "relative": Code.INVALID_ARGUMENT,
    }
    for path, code in refused.items():
        with pytest.raises(RpcError) as caught:
            await link.read_file(path)
        assert caught.value.code == code


async def test_a_disk_that_does_not_come_is_not_found(link: GuestLink) -> None:
    with pytest.raises(RpcError) as caught:
        await link.probe_disk("no-such-serial", timeout=0.05)
    assert caught.value.code == Code.NOT_FOUND
    await link.release_disk("no-such-serial")
