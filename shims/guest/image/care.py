"""Look after the stored guest images: check them, and remove those that nobody needs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shims.core.errors import InputError, NotFound
from shims.guest.image.build import locked
from shims.guest.image.find import MANIFEST, GuestImage, find_guest_image, load_image, stored_images

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Collected", "collect_garbage", "verify_image"]

_CHUNK = 1 << 20
_TRASH = ".removing-"


def verify_image(image: GuestImage) -> list[str]:
    """Return what is wrong with ``image``, a sentence each; an intact image gives an empty list.

    Both files are read in full, which takes 0.1 s.
    """
    try:
        manifest: dict[str, Any] = json.loads((image.directory / MANIFEST).read_bytes())
        load_image(image.directory)
    except (OSError, ValueError, NotFound, InputError) as error:
        return [str(error)]
    wrong: list[str] = []
    for name in ("kernel", "initramfs"):
        described = manifest[name]
        found = _hash(image.directory / described["file"])
        if found != described["sha256"]:
            wrong.append(f"{described['file']}: SHA-256 is {found}, not {described['sha256']}")
    return wrong


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Collected:
    """What ``collect_garbage`` did: digests, and the bytes that the disk got back."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    freed: int


def collect_garbage(state: Path, *, keep: int = 1, dry_run: bool = False) -> Collected:
    """Remove stored images but the current one, the ``keep`` newest, and those in use.

    The current image is what ``find_guest_image`` returns; an image is in use while somebody
    holds it (``hold_guest_image``). Damaged images go. With ``dry_run`` nothing is removed.
    """
    store = state / "guest"
    removed: list[str] = []
    kept: list[str] = []
    freed = 0
    if not store.is_dir():
        return Collected((), (), 0)
    with locked(store):
        intact = stored_images(store)
        wanted = {image.digest for image in intact[:keep]}
        try:
            wanted.add(find_guest_image(state=state).digest)
        except NotFound:
            pass  # not built yet, or no kernel: nothing more to protect
        for directory in sorted(store.iterdir()):
            if not directory.is_dir() or directory.name == "index":
                continue
            if directory.name in wanted or not _take(directory, dry_run=dry_run):
                kept.append(directory.name)
                continue
            removed.append(directory.name.removeprefix(_TRASH))
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
            directory.rename(directory.with_name(f"{_TRASH}{directory.name}"))
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _remove(store: Path, directory: Path, *, dry_run: bool) -> int:
    hidden = store / f"{_TRASH}{directory.name.removeprefix(_TRASH)}"
    place = hidden if hidden.exists() else directory
    size = sum(file.stat().st_blocks * 512 for file in place.iterdir())
    if not dry_run:
        shutil.rmtree(place)
    return size


def _prune_index(store: Path) -> None:
    """Forget builds whose result is gone."""
    for entry in (store / "index").glob("*"):
        try:
            digest = json.loads(entry.read_bytes())["digest"]
        except (ValueError, KeyError, TypeError):
            digest = ""
        if not digest or not (store / digest).is_dir():
            entry.unlink(missing_ok=True)
