"""Look after the stored guest images: check them, and remove those that nobody needs."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shims.core.errors import NotFound
from shims.guest.image.build import TRASH, disk_errors, locked
from shims.guest.image.find import GuestImage, find_guest_image, stored_images
from shims.guest.image.verify import verify_directory

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Collected", "collect_garbage", "verify_image"]


@dataclass(frozen=True)
class Collected:
    """What ``collect_garbage`` did: digests, and the bytes that the disk got back."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    freed: int


def verify_image(image: GuestImage) -> list[str]:
    """Return what is wrong with ``image``, a sentence each; an intact image gives an empty list.

    Both files are read in full, which takes 0.1 s. A damaged image of the store is not found any
    more by what it was built of, so that the next build mends it.
    """
    wrong = verify_directory(image.directory)
    store = image.directory.parent
    if wrong and (store / "index").is_dir():
        with disk_errors(), locked(store):
            _prune_index(store, damaged=image.digest)
    return wrong


@disk_errors()
def collect_garbage(state: Path, *, keep: int = 1, dry_run: bool = False) -> Collected:
    """Remove stored images but the current one, the ``keep`` newest, and those in use.

    The current image is what ``find_guest_image`` returns; an image is in use while somebody
    holds it (``hold_guest_image``). Damaged images go: all are read in full, 0.1 s each. With
    ``dry_run`` nothing is removed.
    """
    store = state / "guest"
    removed: list[str] = []
    kept: list[str] = []
    freed = 0
    if not store.is_dir():
        return Collected((), (), 0)
    with locked(store):
        intact = [
            image.digest for image in stored_images(store) if not verify_directory(image.directory)
        ]
        wanted = set(intact[:keep])
        try:
            wanted |= {find_guest_image(state=state).digest} & set(intact)
        except NotFound:
            pass  # not built yet, or no kernel: nothing more to protect
        for directory in sorted(store.iterdir()):
            if not directory.is_dir() or directory.name == "index":
                continue
            if directory.name in wanted or not _take(directory, dry_run=dry_run):
                kept.append(directory.name)
                continue
            removed.append(directory.name.removeprefix(TRASH))
            freed += _remove(store, directory, dry_run=dry_run)
        if not dry_run:
            _prune_index(store)
    return Collected(tuple(removed), tuple(kept), freed)


def _take(directory: Path, *, dry_run: bool) -> bool:
    """Tell whether nobody holds ``directory``; unless ``dry_run`` nobody finds it any more."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not dry_run and not directory.name.startswith("."):
            # Under the lock: who waits for it finds the files gone, and looks again.
            directory.rename(directory.with_name(f"{TRASH}{directory.name}"))
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _remove(store: Path, directory: Path, *, dry_run: bool) -> int:
    hidden = store / f"{TRASH}{directory.name.removeprefix(TRASH)}"
    place = hidden if hidden.exists() else directory
    size = sum(file.stat().st_blocks * 512 for file in place.iterdir())
    if not dry_run:
        shutil.rmtree(place)
    return size


def _prune_index(store: Path, *, damaged: str = "") -> None:
    """Forget builds whose result is gone, or is ``damaged``."""
    for entry in (store / "index").glob("*"):
        try:
            digest = json.loads(entry.read_bytes())["digest"]
        except (ValueError, KeyError, TypeError):
            digest = ""
        if not digest or digest == damaged or not (store / digest).is_dir():
            entry.unlink(missing_ok=True)
