"""Writable disks for the upper layers of containers: sparse, limited in size, gone with the VM.

A disk is a copy of an empty ext4 file system, made once per size. The copy takes as many blocks of
the host as were written, and has no name, so that it cannot outlive the last process that has it
open. It holds nothing that must survive a crash: there is no journal, and mke2fs marks the inode
tables as zeroed (they are: the file is new), so that the guest's kernel does not write them.
Nobody but us stores it, so that checksums of its metadata would only cost the guest time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shims.core.errors import DeadlineExceeded, InputError, TargetError
from shims.core.paths import ensure_private_dir
from shims.microvm.child import Child
from shims.microvm.helpers import helper_environment

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DEFAULT_SIZE", "SMALLEST", "ScratchDisk", "create_scratch"]

DEFAULT_SIZE = 10 << 30
"""Bytes that a container may write to its root file system unless told otherwise."""
SMALLEST = 16 << 20
LARGEST = 16 << 40
"""What ext4 with 4 KiB blocks can be without 64-bit block numbers."""

_VERSION = 2
"""Of the template; another number makes new ones."""
_FEATURES = "^has_journal,^resize_inode,^orphan_file,^64bit,sparse_super2,^metadata_csum,uninit_bg"
_EXTENDED = "lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard,num_backup_sb=0,root_owner=0:0"
_UUID = "76d0e5c0-0000-4000-8000-000000000001"
_MKE2FS_TIMEOUT = 30.0
_STALE = 3600.0
"""Seconds after which a draft has no maker any more."""
_MOST_TEMPLATES = 8
"""Sizes are a matter of annotations: only those used last keep their template."""
_HEADROOM = 64 << 20
"""Free bytes below which the host's disk counts as full."""
_NO_COPY_RANGE = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
_NO_TMPFILE = {errno.EISDIR, errno.EOPNOTSUPP, errno.ENOENT}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ScratchDisk:
    """An open, writable disk image without a name. Whoever holds it closes it."""

    fd: int
    size: int

    def close(self) -> None:
        """Give the space back, once nobody else has the disk open. Call once."""
        os.close(self.fd)


async def create_scratch(directory: Path, size: int = DEFAULT_SIZE) -> ScratchDisk:
    """Return a new, empty ext4 disk of ``size`` bytes, whose blocks ``directory`` provides.

    ``size`` is rounded up to a MiB. Takes a millisecond, and ten the first time for a size.
    Raises ``InputError`` for a size out of range, ``TargetError`` when the host's disk is full or
    it has no mke2fs, ``DeadlineExceeded`` when that does not end.
    """
    if not SMALLEST <= size <= LARGEST:
        raise InputError("scratch_size", size, f"{SMALLEST} to {LARGEST} bytes")
    size = -(-size >> 20) << 20
    ensure_private_dir(directory)
    free = os.statvfs(directory)
    if free.f_bavail * free.f_frsize < _HEADROOM:
        raise TargetError(f"the disk of {directory} is full", hint="void-guest gc, or free space")
    with os.fdopen(await _template(directory, size), "rb") as source:
        fd = _nameless(directory)
        try:
            os.ftruncate(fd, size)
            _copy_data(source.fileno(), fd)
        except BaseException:
            os.close(fd)
            raise
    return ScratchDisk(fd, size)


async def _template(directory: Path, size: int) -> int:
    """Return an open empty file system of that size, made if there is none."""
    path = directory / f"empty-{_VERSION}-{size}.ext4"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = await _make_template(path, size)
        _sweep(directory)
    os.utime(fd)  # its last use
    return fd


def _sweep(directory: Path) -> None:
    """Remove what killed shims left, and the templates that are unused for longest."""
    templates: list[tuple[float, str]] = []
    for entry in os.scandir(directory):
        try:
            changed = entry.stat().st_mtime
        except FileNotFoundError:
            continue
        if entry.name.endswith(".ext4"):
            templates.append((changed, entry.path))
        elif changed < time.time() - _STALE:
            _unlink(entry.path)
    for _, path in sorted(templates)[:-_MOST_TEMPLATES]:
        _unlink(path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


async def _make_template(template: Path, size: int) -> int:
    fd, draft = _new_file(template.parent)
    try:
        os.ftruncate(fd, size)
        await _run_mke2fs(draft, size)
        os.fsync(fd)
        os.rename(draft, template)
    except BaseException:
        os.close(fd)
        _unlink(draft)
        raise
    return fd


async def _run_mke2fs(draft: str, size: int) -> None:
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
            "-G", "256", "-U", _UUID, "-O", _FEATURES, "-E", _EXTENDED, draft]  # fmt: skip
    try:
        child = Child(argv, helper_environment(), ())
    except FileNotFoundError as error:
        raise TargetError("the host has no mke2fs", hint="apt-get install e2fsprogs") from error
    try:
        await asyncio.wait([child.exited], timeout=_MKE2FS_TIMEOUT)
        if not child.exited.done():
            raise DeadlineExceeded(f"no disk of {size} bytes after {_MKE2FS_TIMEOUT:g} s")
    finally:
        await child.end()
    if code := child.exited.result():
        said = child.said().splitlines() or [f"it exited with {code}"]
        raise TargetError(f"mke2fs cannot make a disk of {size} bytes: {said[-1]}")


def _nameless(directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    fd, path = _new_file(directory)
    os.unlink(path)
    return fd


def _new_file(directory: Path) -> tuple[int, str]:
    path = os.path.join(directory, f".{os.urandom(8).hex()}")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path


def _copy_data(source: int, target: int) -> None:
    """Copy what ``source`` holds but its holes."""
    end = os.fstat(source).st_size
    at = 0
    while True:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole is left
            raise
        until = os.lseek(source, at, os.SEEK_HOLE) if at < end else end
        while at < until:
            at += _copy_piece(source, target, at, min(until - at, _CHUNK))


def _copy_piece(source: int, target: int, at: int, size: int) -> int:
    try:
        if copied := os.copy_file_range(source, target, size, at, at):
            return copied
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
    return os.pwrite(target, os.pread(source, size, at), at)
