"""From the mounts that containerd sends with Create to what a VM can use as a root file system.

=====================================  ===========================================================
containerd's mounts                    attachments
=====================================  ===========================================================
``overlay``                            one erofs image of all ``lowerdir``s, and a scratch disk;
                                       a non-empty ``upperdir`` becomes one more image
``bind``, read-only                    one erofs image of the directory, and a scratch disk
``bind``, writable; none at all        the directory itself, by virtiofs; with a read-only root
                                       it is a layer below a tmpfs
``erofs`` on a file or block device    that disk, and a scratch disk
``ext4``, ``xfs`` likewise             that disk, writable if the mount is
=====================================  ===========================================================

Committed snapshots never change, which is why images of them may be cached; a writable directory is
somebody's own, and what the container writes must be found in it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from shims.core.errors import InputError
from shims.guest.plan.model import GuestSource, Rootfs
from shims.microvm.scratch import DEFAULT_SIZE, create_scratch
from shims.microvm.virtiofs import Share, ShareOptions, start_share

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shims.microvm.cgroup import Cgroup
    from shims.microvm.images import ImageCache
    from shims.microvm.virtiofs import Virtiofsd

__all__ = ["Disk", "HostMount", "Means", "PreparedRootfs", "needs_share", "prepare_rootfs"]

_IMAGES = ("erofs", "squashfs")
_BLOCK_TYPES = ("ext4", "xfs", *_IMAGES)
_FIELD = "rootfs"


class HostMount(Protocol):
    """A mount as containerd describes it (``containerd.types.Mount``)."""

    @property
    def type(self) -> str:
        """``overlay``, ``bind`` or a file system."""

    @property
    def source(self) -> str:
        """A path; of no meaning for an overlay."""

    @property
    def target(self) -> str:
        """A path below the root; empty for the root itself."""

    @property
    def options(self) -> Sequence[str]:
        """As in fstab(5)."""


@dataclass(frozen=True)
class Means:
    """What preparing takes from the host, the same for all containers of a shim."""

    cache: ImageCache
    scratch_dir: Path
    run_dir: Path
    scratch_size: int = DEFAULT_SIZE
    cgroup: Cgroup | None = None
    """For virtiofsd."""
    virtiofsd: Virtiofsd | None = None


@dataclass(frozen=True)
class Disk:
    """For ``Machine.attach_disk``: the descriptor belongs to the ``PreparedRootfs``."""

    fd: int
    serial: str
    readonly: bool
    keep_flushes: bool = True
    """Whether anybody reads the disk after the VM; false for scratch disks."""


@dataclass
class PreparedRootfs:
    """What has to be attached to the VM so that ``rootfs`` means something in it."""

    rootfs: Rootfs
    disks: list[Disk]
    shares: list[Share]
    _owned: AsyncExitStack = field(repr=False)

    async def close(self) -> None:
        """Close descriptors and end processes; call when the container is gone. Repeatable."""
        await self._owned.aclose()


def needs_share(mounts: Sequence[HostMount]) -> bool:
    """Tell whether the root file system comes by virtiofs: decides the VM's machine type."""
    return not mounts or (
        len(mounts) == 1 and mounts[0].type == "bind" and "ro" not in mounts[0].options
    )


async def prepare_rootfs(
    mounts: Sequence[HostMount],
    container_id: str,
    means: Means,
    *,
    directory: str = "",
    readonly: bool = False,
) -> PreparedRootfs:
    """Prepare the root file system of one container.

    ``directory`` is ``root.path`` of its configuration, used when there are no mounts; with
    ``readonly`` (``root.readonly``) nothing needs a scratch disk. Raises ``InputError`` with the
    field for mounts that a VM cannot have, and what the parts raise; then nothing is left behind.
    """
    async with AsyncExitStack() as owned:
        builder = _Builder(container_id, means, owned, readonly=readonly)
        rootfs = await builder.build(mounts, directory)
        return PreparedRootfs(rootfs, builder.disks, builder.shares, owned.pop_all())
    raise AssertionError("unreachable")  # the stack suppresses nothing


class _Builder:
    """Collects attachments; everything that it opens goes on the exit stack at once."""

    def __init__(
        self, container_id: str, means: Means, owned: AsyncExitStack, *, readonly: bool
    ) -> None:
        self._name = hashlib.sha256(container_id.encode()).hexdigest()[:16]
        self._means = means
        self._owned = owned
        self._readonly = readonly
        self.disks: list[Disk] = []
        self.shares: list[Share] = []

    async def build(self, mounts: Sequence[HostMount], directory: str) -> Rootfs:
        if not mounts:
            if not directory:
                raise InputError(_FIELD, [], "a mount, or root.path in config.json")
            return await self._shared(directory)
        if len(mounts) > 1 or mounts[0].target:
            raise InputError(
                _FIELD, ", ".join(mount.type for mount in mounts), "a single mount of the root",
                hint="use a snapshotter whose mounts containerd assembles, such as overlayfs",
            )  # fmt: skip
        mount = mounts[0]
        if mount.type == "overlay":
            return await self._overlay(mount)
        if mount.type == "bind":
            return await self._bind(mount)
        if mount.type in _BLOCK_TYPES:
            return await self._block(mount)
        raise InputError(f"{_FIELD}[0].type", mount.type,
                         ", ".join(("overlay", "bind", *_BLOCK_TYPES)))  # fmt: skip

    async def _overlay(self, mount: HostMount) -> Rootfs:
        settings = dict(option.partition("=")[::2] for option in mount.options)
        lowers = split_layers(settings.get("lowerdir", ""))
        if not lowers:
            raise InputError(f"{_FIELD}[0].options", list(mount.options), "a lowerdir= option")
        layers = [await self._chain(lowers, mount.options)]
        upper = settings.get("upperdir", "")
        if upper and _has_entries(upper):
            image = await self._means.cache.layer(upper, f"x-{self._name}")
            layers.insert(0, self._disk(image.fd, image.serial, image.fstype))
        return await self._layered(layers, readonly=not upper or "ro" in mount.options)

    async def _bind(self, mount: HostMount) -> Rootfs:
        if not os.path.isdir(mount.source):
            raise InputError(f"{_FIELD}[0].source", mount.source, "a directory")
        if "ro" not in mount.options:
            return await self._shared(mount.source)
        return await self._layered([await self._chain([mount.source], ())], readonly=True)

    async def _chain(self, lowers: Sequence[str], options: Sequence[str]) -> GuestSource:
        image = await self._means.cache.image(lowers, options)
        return self._disk(image.fd, image.serial, image.fstype)

    async def _block(self, mount: HostMount) -> Rootfs:
        readonly = "ro" in mount.options or mount.type in _IMAGES
        fd = _open_block(mount.source, readonly=readonly)
        source = self._disk(fd, f"b-{self._name}", mount.type, readonly=readonly)
        if readonly:
            return await self._layered([source], readonly="ro" in mount.options)
        return Rootfs(layers=(), upper=None, share=source, readonly=self._readonly)

    async def _shared(self, directory: str) -> Rootfs:
        options = ShareOptions(readonly=self._readonly)
        share = await self._owned.enter_async_context(
            start_share(
                directory, f"root-{self._name}", run_dir=self._means.run_dir, options=options,
                cgroup=self._means.cgroup, virtiofsd=self._means.virtiofsd,
            )
        )  # fmt: skip
        if share.path:
            raise InputError("root.path", directory, "a directory")
        self.shares.append(share)
        source = GuestSource(kind="share", name=share.tag, fstype="virtiofs")
        if self._readonly:
            return Rootfs(layers=(source,), upper=None, share=None, readonly=True)
        return Rootfs(layers=(), upper=None, share=source, readonly=False)

    async def _layered(self, layers: Sequence[GuestSource], *, readonly: bool) -> Rootfs:
        """Return layers with a scratch disk on top, where anything can be written at all.

        A read-only root gets a tmpfs instead: void-init still makes mount points in it.
        """
        readonly = readonly or self._readonly
        upper = None
        if not readonly:
            scratch = await create_scratch(self._means.scratch_dir, self._means.scratch_size)
            upper = self._disk(scratch.fd, f"u-{self._name}", "ext4", readonly=False, scratch=True)
        return Rootfs(layers=tuple(layers), upper=upper, share=None, readonly=readonly)

    def _disk(
        self, fd: int, serial: str, fstype: str, *, readonly: bool = True, scratch: bool = False
    ) -> GuestSource:
        self._owned.callback(os.close, fd)
        self.disks.append(Disk(fd, serial, readonly, keep_flushes=not scratch))
        return GuestSource(kind="disk", name=serial, fstype=fstype)


def split_layers(value: str) -> list[str]:
    r"""Return the directories of a ``lowerdir=`` option, the topmost first.

    Overlay separates them by colons, and takes ``\:`` for one in a name (its documentation,
    "Multiple lower layers").

    >>> split_layers("/a:/b\\:c")
    ['/a', '/b:c']
    """
    layers = [""]
    letters = iter(value)
    for letter in letters:
        if letter == "\\":
            layers[-1] += next(letters, "")
        elif letter == ":":
            layers.append("")
        else:
            layers[-1] += letter
    return [layer for layer in layers if layer]


def _has_entries(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is not None
    except OSError as error:
        raise InputError(f"{_FIELD}[0].options", directory,
                         f"an upperdir that exists ({error.strerror})") from error  # fmt: skip


def _open_block(path: str, *, readonly: bool) -> int:
    try:
        # Not blocking: a fifo in its place must not hold us up.
        mode = os.O_RDONLY if readonly else os.O_RDWR
        fd = os.open(path, mode | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{_FIELD}[0].source", path,
                         f"a disk image or block device ({error.strerror})") from error  # fmt: skip
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFBLK):
        os.close(fd)
        raise InputError(f"{_FIELD}[0].source", path, "a disk image or block device")
    os.set_blocking(fd, True)
    return fd
