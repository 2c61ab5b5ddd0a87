"""Which kernels the host has, by the names of their files alone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shims.core.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PACKAGE", "InstalledKernel", "choose_kernel", "installed_kernels"]

PACKAGE = "linux-image-cloud-amd64"
"""The Debian package that we ask for: small, and made for virtual machines."""


@dataclass(frozen=True)
class InstalledKernel:
    """A kernel of the host: its file, and the directory with its modules."""

    release: str
    path: Path
    modules: Path


def installed_kernels(root: Path = Path("/")) -> list[InstalledKernel]:
    """Return the kernels below ``root`` whose modules are installed, the best first.

    Kernels for clouds come first (they are small and have every virtio driver), then newer ones.
    Only names are read, so this takes less than a millisecond.
    """
    found: dict[str, InstalledKernel] = {}
    for name in _list(root / "boot"):
        if name.startswith("vmlinuz-"):
            release = name.removeprefix("vmlinuz-")
            found[release] = _kernel(root, release, root / "boot" / name)
    for release in _list(root / "lib/modules"):  # where Fedora and Arch keep it
        path = root / "lib/modules" / release / "vmlinuz"
        if release not in found and path.exists():
            found[release] = _kernel(root, release, path)
    usable = [kernel for kernel in found.values() if (kernel.modules / "modules.dep").exists()]
    return sorted(usable, key=lambda kernel: _rank(kernel.release), reverse=True)


def choose_kernel(root: Path = Path("/")) -> InstalledKernel:
    """Return the kernel that guests of this host run; raise ``NotFound`` when there is none."""
    kernels = installed_kernels(root)
    if not kernels:
        raise NotFound(
            f"no kernel with its modules in {root / 'boot'}", hint=f"apt-get install {PACKAGE}"
        )
    return kernels[0]


def _list(directory: Path) -> Sequence[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _kernel(root: Path, release: str, path: Path) -> InstalledKernel:
    return InstalledKernel(release, path, root / "lib/modules" / release)


def _rank(release: str) -> tuple[bool, list[tuple[int, str]]]:
    """Order releases as people do: 6.1.0-56 is newer than 6.1.0-9, a cloud kernel better."""
    parts = re.findall(r"\d+|[^\d.\-+~_]+", release)
    numbers = [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
    return "cloud" in release, numbers
