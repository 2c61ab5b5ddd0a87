"""Find the guest image that fits the host as it is now, in a millisecond or two.

::

    STATE/guest/<digest>/vmlinux        the kernel, an ELF file that QEMU boots
                         initramfs.cpio void-init, modules, their load order
                         manifest.json  what they were made of, and their hashes
    STATE/guest/index/<key>.json        which digest the build of these inputs gave
    STATE/guest/lock                    held by whoever builds or collects garbage

A build is identified by its inputs: paths, and for each file its size, times and inode, so that an
upgraded kernel package or a new void-init is noticed without reading them. In the same way the
index knows both files of the image as they were published: one that was written to since is not
found any more, and the next build compares it with its manifest.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shims.core.errors import InputError, NotFound
from shims.core.paths import state_dir
from shims.guest.image.host import choose_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FORMAT",
    "VOID_INIT",
    "GuestImage",
    "Request",
    "find_guest_image",
    "hold_guest_image",
    "identity",
    "load_image",
    "lookup",
    "stored_image",
    "stored_images",
]

FORMAT = 1
"""Of the image and its manifest. A new number rebuilds every image."""

VOID_INIT = Path(__file__).resolve().parents[1] / "init" / "void-init"
"""PID 1 of the guest, compiled when void shims were built, or by ``void-guest build``."""

KERNEL, INITRAMFS, MANIFEST = "vmlinux", "initramfs.cpio", "manifest.json"


@dataclass(frozen=True)
class GuestImage:
    """A kernel and its initramfs, ready to boot; the files never change."""

    directory: Path
    kernel: Path
    initramfs: Path
    release: str
    digest: str
    """SHA-256 over both files: equal digests boot equal guests."""
    modules: tuple[str, ...]
    """Names of the modules that void-init loads, in load order."""


@dataclass(frozen=True)
class Request:
    """What to build an image of; everything that is not given comes from the host."""

    kernel: Path
    initramfs: Path | None = None
    modules: Path | None = None
    init: Path = VOID_INIT
    extra: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of this request in the index."""
        given = [self.kernel, self.initramfs, self.modules, self.init, *self.extra]
        text = json.dumps([FORMAT, *(str(item) for item in given)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def find_guest_image(directory: Path | None = None, *, state: Path | None = None) -> GuestImage:
    """Return the guest image of this host, or the one that ``directory`` holds.

    ``state`` replaces the state directory. Raises ``NotFound`` when no image was built of the
    newest kernel and the present void-init; then ``build_guest_image`` makes one. A host whose
    kernel package is gone keeps using the newest image that was built of such packages alone.
    """
    if directory is not None:
        return load_image(directory)
    store = (state or state_dir()) / "guest"
    try:
        kernel = choose_kernel()
    except NotFound:
        if stored := _default_images(store):
            return stored[0]
        raise
    image = lookup(store, Request(kernel=kernel.path, modules=kernel.modules))
    if image is None:
        raise NotFound(
            f"no guest image was built of the kernel {kernel.release} and the present void-init",
            hint="void-guest build",
        )
    return image


def _default_images(store: Path) -> list[GuestImage]:
    """Return the images for which nobody named a kernel or anything else, the newest first."""
    digests: set[str] = set()
    for path in (store / "index").glob("*.json"):
        with contextlib.suppress(*_NO_ENTRY):
            entry = _read_entry(path)
            if entry.get("default") is True:
                digests.add(_published(store, entry).digest)
    return [image for image in stored_images(store) if image.digest in digests]


_NO_ENTRY = (OSError, ValueError, KeyError, TypeError, AttributeError, NotFound, InputError)
"""What reading an entry raises that is not there or damaged: a build repairs both."""


def _read_entry(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(path.read_bytes())
    return entry


def _published(store: Path, entry: dict[str, Any]) -> GuestImage:
    """Return the image of an entry; raise one of ``_NO_ENTRY`` if it was changed since."""
    image = load_image(store / str(entry["digest"]))
    known = dict(entry["outputs"])
    if any(identity(str(path)) != known[path.name] for path in (image.kernel, image.initramfs)):
        raise NotFound(f"the guest image {image.digest} was changed")
    return image


def lookup(store: Path, request: Request) -> GuestImage | None:
    """Return the image that a build of ``request`` gave, if neither it nor an input changed."""
    with contextlib.suppress(*_NO_ENTRY):
        entry = _read_entry(store / "index" / f"{request.key}.json")
        inputs = dict(entry["inputs"])
        if inputs and all(identity(path) == known for path, known in inputs.items()):
            return _published(store, entry)
    return None


def identity(path: str) -> list[int]:
    """Return what changes when the file does: size, times, inode."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def load_image(directory: Path) -> GuestImage:
    """Return the image in ``directory``, whose files are checked for presence and size only.

    Raises ``NotFound`` when there is none, ``InputError`` when it is damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"no guest image in {directory}", hint="void-guest build") from error
    except OSError as error:
        raise InputError(
            str(directory), error.strerror, "a guest image that we may read"
        ) from error
    except ValueError as error:
        raise InputError(str(directory / MANIFEST), "damaged JSON", "a manifest") from error
    try:
        image = GuestImage(
            directory=directory,
            kernel=directory / manifest["kernel"]["file"],
            initramfs=directory / manifest["initramfs"]["file"],
            release=manifest["release"],
            digest=manifest["digest"],
            modules=tuple(manifest["modules"]),
        )
        sizes = {image.kernel: manifest["kernel"], image.initramfs: manifest["initramfs"]}
        for path, described in sizes.items():
            if path.stat().st_size != described["size"]:
                raise InputError(str(path), "another size", f"{described['size']} bytes")
    except (KeyError, TypeError) as error:
        raise InputError(str(directory / MANIFEST), "no image", "a manifest of ours") from error
    except FileNotFoundError as error:
        raise InputError(str(error.filename), None, "the file that its manifest names") from error
    return image


def stored_images(store: Path) -> list[GuestImage]:
    """Return the intact images in ``store``, the newest first."""
    found: list[tuple[int, GuestImage]] = []
    for manifest in store.glob(f"*/{MANIFEST}"):
        if manifest.parent.name.startswith("."):
            continue  # under construction, or being removed
        try:
            found.append((manifest.stat().st_mtime_ns, load_image(manifest.parent)))
        except (FileNotFoundError, NotFound, InputError):
            continue
    return [image for _, image in sorted(found, key=lambda pair: pair[0], reverse=True)]


def stored_image(store: Path, beginning: str) -> GuestImage:
    """Return the image in ``store`` whose digest begins so.

    Raises ``InputError`` when that is no digest, or that of several, ``NotFound`` when of none.
    """
    if re.fullmatch(r"[0-9a-f]{1,64}", beginning) is None:
        raise InputError("digest", beginning, "the beginning of a digest: lower-case hex digits")
    matches = [path for path in store.glob(f"{beginning}*") if path.is_dir()]
    if len(matches) > 1:
        raise InputError("digest", beginning, f"more of it: {len(matches)} images begin so")
    return load_image(matches[0] if matches else store / beginning)


@contextlib.contextmanager
def hold_guest_image(image: GuestImage) -> Iterator[GuestImage]:
    """Keep ``image`` from ``void-guest gc`` for as long as the context lasts.

    Raises ``NotFound`` when it was removed just before.
    """
    try:
        fd = os.open(image.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(
            f"the guest image {image.digest} is gone", hint="void-guest build"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        if not image.kernel.exists():
            raise NotFound(f"the guest image {image.digest} is gone", hint="void-guest build")
        yield image
    finally:
        os.close(fd)
