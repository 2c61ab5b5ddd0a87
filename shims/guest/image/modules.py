"""Which modules the guest needs, and the order in which void-init loads them.

``modules.dep``, ``modules.builtin``, ``modules.softdep`` and ``modules.alias`` are depmod's; their
formats are described in modules.dep(5) and modprobe.d(5). A dependency line names the nearest
dependency last to load first: it is walked from its end. A soft dependency is what a module uses
when it is there: libcrc32c, with which erofs and ext4 checksum, asks so for implementations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shims.core.errors import NotSupported
from shims.guest.image.decompress import compression_of, decompress

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["OPTIONAL", "REQUIRED", "TABLES", "TRANSPORTS", "Module", "ModuleTree", "plan_modules"]

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

TABLES = ("modules.dep", "modules.builtin", "modules.softdep", "modules.alias")
"""The files on which the choice depends."""


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
    uses: dict[str, tuple[str, ...]]
    """What is to be loaded before a module that can do without."""
    builtin: frozenset[str]

    @classmethod
    def read(cls, directory: Path) -> ModuleTree:
        """Read the tables of ``directory`` (``/lib/modules/<release>``)."""
        files: dict[str, Path] = {}
        needs: dict[str, tuple[str, ...]] = {}
        for line in _lines(directory / "modules.dep"):
            path, _, dependencies = line.partition(":")
            name = module_name(path)
            files[name] = directory / path
            needs[name] = tuple(module_name(other) for other in reversed(dependencies.split()))
        uses = _soft_dependencies(directory, files)
        builtin = _lines(directory / "modules.builtin")
        return cls(directory, files, needs, uses, frozenset(map(module_name, builtin)))

    def has(self, name: str) -> bool:
        """Tell whether the kernel can do what the module ``name`` does."""
        return name in self.files or name in self.builtin


def _lines(table: Path) -> list[str]:
    return table.read_text().splitlines() if table.exists() else []


def _soft_dependencies(directory: Path, files: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return for each module those that it asks for with ``pre:``, by name or by alias."""
    asked: dict[str, list[str]] = {}
    for line in _lines(directory / "modules.softdep"):
        words = line.partition("post:")[0].split()
        if len(words) > 3 and words[0] == "softdep" and words[2] == "pre:":
            asked.setdefault(module_name(words[1]), []).extend(words[3:])
    wanted = {name: [module_name(name)] for names in asked.values() for name in names}
    for line in _lines(directory / "modules.alias"):
        words = line.split()
        if len(words) == 3 and words[1] in wanted:
            wanted[words[1]].append(module_name(words[2]))
    return {
        module: tuple(found for name in names for found in wanted[name] if found in files)
        for module, names in asked.items()
    }


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
    seen: set[str] = set()
    for name in TRANSPORTS + REQUIRED + OPTIONAL + wanted_more:
        _visit(tree, name, order, seen)
    return list(order.values())


def _visit(tree: ModuleTree, name: str, order: dict[str, Module], seen: set[str]) -> None:
    if name in seen or name not in tree.files:
        return
    seen.add(name)  # before the others: soft dependencies may go round in a circle
    for other in tree.uses.get(name, ()) + tree.needs[name]:
        _visit(tree, other, order, seen)
    order[name] = Module(name, tree.files[name])
