"""The files of the image cache: are they whole, which may go, which must stay.

Nothing here waits or starts a process; both the shim and its helper use it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

from shims.microvm import superblock

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "boot_id",
    "collect",
    "discard",
    "intact_fstype",
    "is_at",
    "note",
    "noted_facts",
    "verify",
]

_READ = 1 << 20
_NOTE_TAKES = 3600.0
"""Seconds; whoever has not replaced a note by then is dead."""


def boot_id() -> str:
    """Return what tells this boot of the host from all others."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def note(name: str, document: dict[str, Any]) -> None:
    """Replace the description beside the image ``name``, in the working directory."""
    draft = f"{name}.{os.getpid()}.note"
    with open(draft, "w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, f"{name}.json")


def intact_fstype(directory: Path, key: str, fd: int) -> str:
    """Return the file system of the image open as ``fd``; empty when it is not as published.

    Takes 0.1 ms: only its size and its superblock are looked at.
    """
    noted = noted_facts(directory, key)
    if noted is None or (noted.get("boot") and noted["boot"] != boot_id()):
        return ""  # never synced, and the host went down since
    fstype = str(noted.get("fstype"))
    whole = noted.get("size") == os.fstat(fd).st_size and superblock.is_whole(fd, fstype)
    return fstype if whole else ""


def verify(directory: Path) -> dict[str, str]:
    """Read every image and return what is wrong, by key; damaged ones are removed.

    An image whose hash is not known yet, because it was built a moment ago, is passed over.
    """
    wrong: dict[str, str] = {}
    for path in sorted(directory.glob("*.image")):
        with path.open("rb") as file:
            noted = noted_facts(directory, path.stem) or {}
            if not intact_fstype(directory, path.stem, file.fileno()):
                wrong[path.stem] = "its size or superblock is not as published"
            elif "sha256" in noted and _hash(file.fileno()) != noted["sha256"]:
                wrong[path.stem] = "its content is not as published"
        if path.stem in wrong:
            discard(directory, path.stem)
    return wrong


def noted_facts(directory: Path, key: str) -> dict[str, Any] | None:
    """Return what is noted beside an image; None when that is missing or damaged."""
    try:
        noted: Any = json.loads((directory / f"{key}.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return noted if isinstance(noted, dict) else None


def _hash(fd: int) -> str:
    digest = hashlib.sha256()
    at = 0
    while piece := os.pread(fd, _READ, at):
        digest.update(piece)
        at += len(piece)
    return digest.hexdigest()


def is_at(path: str | Path, fd: int) -> bool:
    """Tell whether ``path`` is still the file that is open as ``fd``."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def discard(directory: Path, key: str) -> None:
    """Remove an image. VMs that have it open keep it."""
    for suffix in ("image", "json"):
        (directory / f"{key}.{suffix}").unlink(missing_ok=True)


def collect(directory: Path, limit: int, *, free: int = 0, keep: str = "") -> list[str]:
    """Remove images until those left take at most ``limit`` bytes; return the keys removed.

    Nor until ``free`` bytes of the disk are free. The longest unused go first. An image that a VM
    has open stays, and so does ``keep``, and a draft that a builder works on; what dead builders
    left goes in any case.
    """
    removed: list[str] = []
    images: list[tuple[int, int, str]] = []
    for path in directory.glob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if path.suffix == ".image":
            images.append((found.st_mtime_ns, found.st_blocks * 512, path.stem))
        elif path.suffix in (".part", ".lock"):
            _remove_unlocked(path)
        elif path.suffix == ".note" and found.st_mtime < time.time() - _NOTE_TAKES:
            path.unlink(missing_ok=True)
    total = sum(size for _, size, _ in images)
    short = free - _free_bytes(directory)
    for _, size, key in sorted(images):
        if total <= limit and short <= 0:
            break
        if key != keep and _remove_unlocked(directory / f"{key}.image"):
            discard(directory, key)
            removed.append(key)
            total -= size
            short -= size
    return removed


def _free_bytes(directory: Path) -> int:
    try:
        found = os.statvfs(directory)
    except FileNotFoundError:
        return 0
    return found.f_bavail * found.f_frsize


def _remove_unlocked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(path, fd):
            path.unlink()  # nobody else may: we have the lock of what is there
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
