"""Image layers as disks: one read-only image per chain of layer directories, cached.

containerd's committed snapshots never change, so a chain is identified by the identity of its
directories (path, device, inode, change time) and not by what they hold. Images are built by a
helper process (``mkimage``), once when many ask at the same time, and published by a rename.

::

    STATE/images/<key>.image   the image
                 <key>.json    its size and hash, the layers it is of, the boot it is valid for
                 <key>.part    under construction, locked by its builder
                 <key>.lock    at which builders of the same image wait for each other

An image in use has a shared flock on its open file, which QEMU's descriptor keeps as long as the
VM lives, even when the shim is gone; ``collect`` leaves such images alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shims.core.errors import DeadlineExceeded, InputError, NotSupported, TargetError
from shims.core.paths import ensure_private_dir
from shims.microvm.child import Child
from shims.microvm.helpers import helper_argv, helper_environment
from shims.microvm.image_store import collect, discard, intact_fstype

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["CachedImage", "ImageCache", "ImageFailed"]

_FORMAT = 1
DEFAULT_LIMIT = 20 << 30
_KEEP_FREE = 1 << 30
"""Bytes of the disk that the cache leaves to others."""
_BUILD_TIMEOUT = 100.0
"""Seconds for one image, some 20 GB. A builder that takes longer would lose its client: kubelet
gives Create two minutes."""
_ANSWER_LIMIT = 1 << 16
_MEANINGFUL = ("userxattr", "redirect_dir", "metacopy")
"""Options of containerd's overlay that say how to read the layers; the others are about writing."""


class ImageFailed(TargetError):
    """The host could not make an image of the layers."""


@dataclass(frozen=True)
class CachedImage:
    """An open image. Whoever holds it closes it; a copy of ``fd`` keeps the image in the cache."""

    fd: int
    serial: str
    """SCSI serial number under which the guest finds the disk, 18 characters."""
    size: int
    fstype: str
    """``erofs``, or ``ext4`` where that could not be made."""

    def close(self) -> None:
        """Give the image back. Call once."""
        os.close(self.fd)


class ImageCache:
    """The erofs images in one directory, shared by all shims of the host."""

    def __init__(self, directory: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        """Use ``directory``, made when the first image is, and keep it below ``limit`` bytes."""
        self.directory = directory
        self._limit = limit
        self._building: dict[str, asyncio.Task[None]] = {}
        self.helpers: set[Child] = set()
        """Builders that run, also those whose image is in use while they sync and hash it."""
        self.builds = 0
        """How often this process had to start one."""

    async def image(
        self, layers: Sequence[str], options: Sequence[str] = (), *, timeout: float = _BUILD_TIMEOUT
    ) -> CachedImage:
        """Return the image of a chain of layer directories, the topmost first.

        ``options`` are those of the overlay mount. Raises ``InputError`` for a layer that is no
        directory, ``ImageFailed`` when the image cannot be built, ``DeadlineExceeded`` after
        ``timeout`` seconds. Cancelling one caller does not disturb others that want the same.
        """
        meaning = sorted(option for option in options if option.split("=")[0] in _MEANINGFUL)
        key = _key(layers, meaning)
        for _ in range(2):
            if found := self._open(key):
                return found
            task = self._building.get(key)
            if task is None:
                task = asyncio.create_task(self._build(key, layers, meaning), name=f"image {key}")
                self._building[key] = task
                task.add_done_callback(lambda _: self._building.pop(key, None))
            try:
                await asyncio.wait_for(asyncio.shield(task), timeout)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"no image of {len(layers)} layers after {timeout:.0f} s"
                ) from error
        if found := self._open(key):
            return found
        raise ImageFailed(f"the image {key} vanishes as soon as it is built",
                          hint=f"is the disk of {self.directory} damaged?")  # fmt: skip

    async def layer(self, directory: str, serial: str) -> CachedImage:
        """Return an image of one overlay layer as it is, whiteouts included, that is not cached.

        For a writable layer that is not empty. Its file has no name, so it cannot outlive us.
        """
        ensure_private_dir(self.directory)
        path = self.directory / f"{os.urandom(8).hex()}.part"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # not garbage, though it looks like it
            request = {**self._request([directory]), "raw": True, "fd": fd}
            fstype = await self._run(request, pass_fds=(fd,))
            image = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return CachedImage(image, serial, os.fstat(fd).st_size, fstype)
        finally:
            os.unlink(path)
            os.close(fd)

    async def close(self) -> None:
        """End builds and what follows them. Images that were handed out stay valid."""
        for task in list(self._building.values()):
            task.cancel()
        await asyncio.gather(*self._building.values(), return_exceptions=True)
        for helper in list(self.helpers):
            await helper.end()

    def _open(self, key: str) -> CachedImage | None:
        path = self.directory / f"{key}.image"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        keep = False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink == 0:
                return None  # just collected
            fstype = intact_fstype(self.directory, key, fd)
            if not fstype:
                discard(self.directory, key)
                return None
            os.utime(path)  # its last use, for `collect`
            keep = True
            return CachedImage(fd, f"e-{key[:16]}", os.fstat(fd).st_size, fstype)
        except (BlockingIOError, FileNotFoundError):
            return None  # being collected
        finally:
            if not keep:
                os.close(fd)

    async def _build(self, key: str, layers: Sequence[str], options: Sequence[str]) -> None:
        ensure_private_dir(self.directory)
        request = {**self._request(layers), "name": key, "options": options, "uuid": _uuid(key)}
        await self._run(request)
        collect(self.directory, self._limit, free=_KEEP_FREE, keep=key)

    def _request(self, layers: Sequence[str]) -> dict[str, Any]:
        place = self.directory / ".mount"  # only a place: what is mounted there nobody else sees
        place.mkdir(mode=0o700, exist_ok=True)
        return {
            "directory": str(self.directory), "name": "", "layers": list(layers), "options": [],
            "raw": False, "fd": -1, "uuid": _uuid(""),
        }  # fmt: skip

    async def _run(self, request: dict[str, Any], pass_fds: Sequence[int] = ()) -> str:
        """Make an image; if the disk is too full for it, once more when older ones have gone."""
        if os.geteuid() != 0:
            raise NotSupported("images of layers need root", hint="run the shim as root")
        answer = await self._ask(request, pass_fds)
        if answer["error"] and collect(self.directory, self._limit, free=answer["needs"]):
            answer = await self._ask(request, pass_fds)
        if answer["error"]:
            raise ImageFailed(answer["error"])
        return str(answer["fstype"])

    async def _ask(self, request: dict[str, Any], pass_fds: Sequence[int]) -> dict[str, Any]:
        """Run the helper until it answers. What it does afterwards it does beside us."""
        argv = helper_argv("shims.microvm.mkimage", request)
        self.builds += 1
        helper = Child(argv, helper_environment(), pass_fds)
        self.helpers.add(helper)
        helper.exited.add_done_callback(lambda _: self.helpers.discard(helper))
        try:
            line = await helper.answer()
            answer: dict[str, Any] = json.loads(line or b"{}")
        except BaseException:
            await helper.end()
            raise
        if not line:
            status = await helper.end()
            raise ImageFailed(f"the image builder died ({status}): {helper.said()[-200:]}")
        if answer["error"]:
            await helper.end()
        return answer


def _key(layers: Sequence[str], options: Sequence[str]) -> str:
    """Return the name of the image of these layers, 32 hexadecimal digits."""
    if not layers:
        raise InputError("rootfs", [], "at least one layer")
    parts: list[object] = [_FORMAT, *options]
    for layer in layers:
        try:
            found = os.stat(layer)
        except OSError as error:
            raise InputError("rootfs.lowerdir", layer,
                             f"a directory ({error.strerror})") from error  # fmt: skip
        # The path too: file systems in user space reuse device and inode numbers.
        parts.append((os.path.abspath(layer), found.st_dev, found.st_ino, found.st_ctime_ns))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _uuid(key: str) -> str:
    digits = hashlib.sha256(key.encode()).hexdigest()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:32]))
