"""Small read-only volumes, copied into the guest and kept in step with the host.

ConfigMaps, Secrets, projected tokens, resolv.conf and the like are small, read-only for the
container, and changed by the host. Copying them needs no device and no daemon, and a watcher inside
the container sees changes as it would with runc: kubelet swaps the symbolic link ``..data``, and so
do we, after everything that it will lead to has arrived.

Symbolic links are copied, never followed; what is neither file, directory nor link is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from protos.gen.voidbox.guest.v1.guest_pb2 import WriteFileRequest
from shims.core.errors import InputError, ShimError
from shims.guest.inotify import Watch
from shims.guest.link import TreeEntry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = [
    "MOST_BYTES", "MOST_ENTRIES", "MOST_FILE_BYTES", "GuestFiles", "TooLarge", "push_volume",
    "scan",
]  # fmt: skip

MOST_FILE_BYTES = 1 << 20
MOST_BYTES = 16 << 20
MOST_ENTRIES = 4096
_LONGEST_PATH = 3500
"""Below the volume's root. The guest takes 4095 bytes in all, and the root is one of its own."""
_DEEPEST = 32
_SETTLE = 0.05
"""Seconds for which a burst of changes is collected before it is copied."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds after which a copy that failed is tried again, doubled each time up to the latter."""
_WRITE_TIMEOUT = 30.0
_FILE = WriteFileRequest.KIND_FILE
_DIRECTORY = WriteFileRequest.KIND_DIRECTORY
_SYMLINK = WriteFileRequest.KIND_SYMLINK


class TooLarge(InputError):
    """The volume is too large to be copied; it has to be shared instead."""


class GuestFiles(Protocol):
    """The part of ``GuestLink`` that is needed here."""

    async def write_file(
        self, path: str, data: bytes, *, mode: int, uid: int, gid: int, in_place: bool,
        timeout: float,
    ) -> None:  # fmt: skip
        """Write one file."""

    async def write_tree(self, root: str, entries: list[TreeEntry], *, timeout: float) -> None:
        """Make or replace entries in their order, each atomically."""

    async def remove_file(self, path: str, *, recursive: bool, timeout: float) -> None:
        """Remove a file or tree; one that is absent is no error."""


@dataclass(frozen=True)
class _Entry:
    """What is where, and which version of it: equal entries need no copying."""

    kind: WriteFileRequest.Kind
    mode: int
    uid: int
    gid: int
    size: int
    version: tuple[int, int, int]
    target: bytes = b""


Tree = dict[bytes, _Entry]
"""Entries by path below the volume's root, which is ``b""``; parents before their children."""


def scan(source: str) -> Tree:
    """Return what is below ``source``, a directory or file, without reading content.

    Raises ``InputError`` when it cannot be read, ``TooLarge`` when it must not be copied.
    """
    tree: Tree = {}
    total = 0
    try:
        for path, entry in _walk(os.fsencode(source)):
            tree[path] = entry
            total += entry.size
            _check_size(source, path, entry, len(tree), total)
    except OSError as error:
        raise InputError("volume", source, f"a readable volume ({error.strerror})") from error
    return tree


def _check_size(source: str, path: bytes, entry: _Entry, count: int, total: int) -> None:
    where = os.path.join(source, os.fsdecode(path)) if path else source
    if len(path) > _LONGEST_PATH:
        raise TooLarge(where, f"a path of {len(path)} bytes", f"at most {_LONGEST_PATH}")
    if entry.size > MOST_FILE_BYTES:
        raise TooLarge(where, f"{entry.size} bytes", f"at most {MOST_FILE_BYTES}")
    if count > MOST_ENTRIES:
        raise TooLarge(source, "more files", f"at most {MOST_ENTRIES}")
    if total > MOST_BYTES:
        raise TooLarge(source, "more in all", f"at most {MOST_BYTES} bytes")


def _walk(source: bytes) -> Iterator[tuple[bytes, _Entry]]:
    # The root is a path that somebody checked before; a link in its place is followed, as in a
    # mount. Everything below is reached by descriptors.
    root = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(root)
        if stat.S_ISREG(found.st_mode):
            yield b"", _entry(_FILE, found)
        elif stat.S_ISDIR(found.st_mode):
            yield from _walk_directory(root, b"", 0)
        else:
            raise InputError("volume", os.fsdecode(source), "a file or directory")
    finally:
        os.close(root)


def _walk_directory(directory: int, path: bytes, depth: int) -> Iterator[tuple[bytes, _Entry]]:
    yield path, _entry(_DIRECTORY, os.fstat(directory))
    if depth >= _DEEPEST:
        raise TooLarge(os.fsdecode(path), "more below", f"at most {_DEEPEST} directories deep")
    for name in sorted(os.listdir(directory)):
        below = os.path.join(path, os.fsencode(name))
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                target = os.fsencode(os.readlink(name, dir_fd=directory))
                yield below, _entry(_SYMLINK, found, target)
            elif stat.S_ISREG(found.st_mode):
                yield below, _entry(_FILE, found)
            elif stat.S_ISDIR(found.st_mode):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                child = os.open(name, flags, dir_fd=directory)
                try:
                    yield from _walk_directory(child, below, depth + 1)
                finally:
                    os.close(child)
        except FileNotFoundError:
            continue  # removed under our eyes: an event brings us back


def _entry(kind: WriteFileRequest.Kind, found: os.stat_result, target: bytes = b"") -> _Entry:
    # A directory's times change with its entries, which are looked at by themselves.
    version = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns) if kind == _FILE else (0, 0, 0)
    size = found.st_size if kind == _FILE else 0
    mode = stat.S_IMODE(found.st_mode)
    return _Entry(kind, mode, found.st_uid, found.st_gid, size, version, target)


@contextlib.asynccontextmanager
async def push_volume(
    guest: GuestFiles, source: str, guest_path: str, *, report: Callable[[str], None]
) -> AsyncIterator[None]:
    """Copy ``source`` to ``guest_path`` and keep it in step as long as the context lasts.

    A file keeps its inode in the guest, because it is bound into the container; a directory's
    entries are replaced by renames. Raises what ``scan`` and the guest raise, and ``OSError``
    when the host cannot watch. What goes wrong later is told to ``report``, in a sentence without
    content; the last good state stays, and the copy is tried again by itself.
    """
    volume = _Volume(guest, source, guest_path)
    with Watch() as watch:
        await volume.synchronise(watch)
        task = asyncio.create_task(_follow(volume, watch, report), name=f"push {source}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _follow(volume: _Volume, watch: Watch, report: Callable[[str], None]) -> None:
    pause: float | None = None
    told = ""
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(watch.changed.wait(), pause)
            await asyncio.sleep(_SETTLE)
        watch.changed.clear()
        try:
            await volume.synchronise(watch)
        except (ShimError, OSError) as error:
            # The host may have nothing more to say: what failed is tried again by itself.
            pause = min(2 * pause, _LONGEST_PAUSE) if pause else _FIRST_PAUSE
            if str(error) != told:
                report(f"volume {volume.source} is not up to date in the guest: {error}")
            told = str(error)
        else:
            pause, told = None, ""


class _Volume:
    """One volume, and what the guest has of it."""

    def __init__(self, guest: GuestFiles, source: str, guest_path: str) -> None:
        self.source = source
        self._root = os.fsencode(source)
        self._guest = guest
        self._guest_path = guest_path
        self._there: Tree = {}

    async def synchronise(self, watch: Watch) -> None:
        """Bring the guest's copy up to date: new things, then links to them, then removals."""
        tree = scan(self.source)
        directories = [path for path, entry in tree.items() if path and entry.kind == _DIRECTORY]
        paths = [self._root, *(os.path.join(self._root, path) for path in directories)]
        unwatched: OSError | None = None
        try:
            watch.follow(paths, resolved=[self._root])
        except OSError as error:
            unwatched = error  # what is there is copied all the same
        # Once more: what changed between the first look and the watch would be missed.
        tree = scan(self.source)
        changed = [path for path, entry in tree.items() if self._there.get(path) != entry]
        await self._make_room(tree)
        for path in sorted(changed, key=lambda path: _order(path, tree[path])):
            if await self._write(path, tree[path]):
                self._there[path] = tree[path]
        for path in list(self._there):
            if path not in tree and path in self._there:  # not gone with its directory
                await self._remove(path)
        if unwatched is not None:
            raise unwatched

    async def _make_room(self, tree: Tree) -> None:
        """Remove what became another kind of thing: no rename replaces a directory by a file."""
        for path, entry in list(self._there.items()):
            new = tree.get(path)
            if new is not None and new.kind != entry.kind and _DIRECTORY in (new.kind, entry.kind):
                await self._remove(path)

    async def _write(self, path: bytes, entry: _Entry) -> bool:
        data = entry.target
        if entry.kind == _FILE:
            content = self._read(path)
            if content is None:
                return False
            data = content
        if not path and entry.kind == _FILE:
            await self._guest.write_file(
                self._guest_path, data, mode=entry.mode, uid=entry.uid, gid=entry.gid,
                in_place=True, timeout=_WRITE_TIMEOUT,
            )  # fmt: skip
            return True
        written = TreeEntry(
            path=os.fsdecode(path), kind=entry.kind, mode=entry.mode, uid=entry.uid,
            gid=entry.gid, data=data,
        )  # fmt: skip
        await self._guest.write_tree(self._guest_path, [written], timeout=_WRITE_TIMEOUT)
        return True

    def _read(self, path: bytes) -> bytes | None:
        """Return a file's content; None when it is gone, which is another event."""
        follow = os.O_NOFOLLOW if path else 0
        place = os.path.join(self._root, path) if path else self._root
        try:
            fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow)
        except OSError:
            return None
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            content = file.read(MOST_FILE_BYTES + 1)
        return content if len(content) <= MOST_FILE_BYTES else None

    async def _remove(self, path: bytes) -> None:
        below = path + b"/"
        for known in [known for known in self._there if known == path or known.startswith(below)]:
            del self._there[known]
        place = os.path.join(self._guest_path, os.fsdecode(path)) if path else self._guest_path
        await self._guest.remove_file(place, recursive=True, timeout=_WRITE_TIMEOUT)


def _order(path: bytes, entry: _Entry) -> tuple[bool, bool, int, bytes]:
    """Sort things before the links that lead to them, and ``..data`` before the links over it."""
    is_link = entry.kind == _SYMLINK
    hidden = os.path.basename(path).startswith(b"..")
    return is_link, is_link and not hidden, path.count(b"/") if path else -1, path
