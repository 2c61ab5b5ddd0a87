"""Which modules the guest needs, and the order in which void-init loads them.

``modules.dep``, ``modules.builtin`` and ``modules.softdep`` are depmod's; their formats are
described in modules.dep(5) and modprobe.d(5). A dependency line names the nearest dependency last
to load first: it is walked from its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shims.core.errors import NotSupported
from shims.guest.image.decompress import compression_of, decompress

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["OPTIONAL", "REQUIRED", "TRANSPORTS", "Module", "ModuleTree", "plan_modules"]

TRANSPORTS = ("virtio_mmio", "virtio_pci")
"""How the guest finds its devices: machine type microvm, and q35. One of them must be there."""

REQUIRED = ("virtio_console", "virtio_scsi", "sd_mod", "erofs", "overlay", "ext4")
"""The guest link, hot-plugged disks, image layers, and the root file system made of them."""

OPTIONAL = (
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "fuse",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "squashfs",
)
"""What some kernels lack and most guests can do without."""

_ACCELERATED = {"libcrc32c": ("crc32c_intel",)}
"""What a module uses when it is there, and depmod does not know about. erofs and ext4 checksum."""


@dataclass(frozen=True)
class Module:
    """A module file of the host: its name (with underscores) and its path."""

    name: str
    path: Path

    def read(self) -> bytes:
        """Return the module as finit_module(2) wants it: not compressed."""
        content = self.path.read_bytes()
        if compression_of(content):
            return decompress(content, what=str(self.path))
        return content


@dataclass(frozen=True)
class ModuleTree:
    """What depmod wrote for one kernel: files, dependencies, and what is built in."""

    directory: Path
    files: dict[str, Path]
    needs: dict[str, tuple[str, ...]]
    builtin: frozenset[str]

    @classmethod
    def read(cls, directory: Path) -> ModuleTree:
        """Read the tables of ``directory`` (``/lib/modules/<release>``)."""
        files: dict[str, Path] = {}
        needs: dict[str, tuple[str, ...]] = {}
        for line in (directory / "modules.dep").read_text().splitlines():
            path, _, dependencies = line.partition(":")
            name = module_name(path)
            files[name] = directory / path
            needs[name] = tuple(module_name(other) for other in reversed(dependencies.split()))
        builtin = directory / "modules.builtin"
        names = builtin.read_text().splitlines() if builtin.exists() else []
        return cls(directory, files, needs, frozenset(module_name(name) for name in names))

    def has(self, name: str) -> bool:
        """Tell whether the kernel can do what the module ``name`` does."""
        return name in self.files or name in self.builtin


def module_name(path: str) -> str:
    """Return the name that the kernel gives the module of file ``path``.

    >>> module_name("kernel/arch/x86/crypto/crc32c-intel.ko.xz")
    'crc32c_intel'
    """
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def plan_modules(tree: ModuleTree, extra: Iterable[str] = ()) -> list[Module]:
    """Return the modules that the guest image carries, in load order, dependencies first.

    ``extra`` names more modules, which must exist. Raises ``NotSupported`` with the names when
    the kernel lacks something that a guest cannot do without.
    """
    wanted_more = tuple(name.replace("-", "_") for name in extra)
    missing = [name for name in REQUIRED + wanted_more if not tree.has(name)]
    if not any(tree.has(name) for name in TRANSPORTS):
        missing.append(" or ".join(TRANSPORTS))
    if missing:
        raise NotSupported(
            f"the kernel {tree.directory.name} lacks {', '.join(missing)}",
            hint="install a distribution's kernel (linux-image-cloud-amd64), or build these in",
        )
    order: dict[str, Module] = {}
    for name in TRANSPORTS + REQUIRED + OPTIONAL + wanted_more:
        if name in tree.files:
            _visit(tree, name, order)
    return list(order.values())


def _visit(tree: ModuleTree, name: str, order: dict[str, Module]) -> None:
    if name in order or name not in tree.files:
        return
    for other in _ACCELERATED.get(name, ()) + tree.needs[name]:
        _visit(tree, other, order)
    order[name] = Module(name, tree.files[name])
