"""The guest image: a kernel that QEMU boots directly, and an initramfs whose PID 1 is void-init.

Both are made on the host from what the host has installed: the kernel package and void-init. The
result is content-addressed, so two hosts with the same packages have the same digest.

Rules of this package: ``find`` is on the start path of every shim, and imports neither click nor
rich nor pydantic nor what building needs; only ``cli`` may print.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shims.guest.image.find import GuestImage, find_guest_image, hold_guest_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["GuestImage", "build_guest_image", "find_guest_image", "hold_guest_image"]


def build_guest_image(
    *,
    kernel: Path | None = None,
    initramfs: Path | None = None,
    init: Path | None = None,
    modules: Sequence[str] = (),
    state: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> GuestImage:
    """Return the guest image of these inputs, building it if need be; see ``build``."""
    from shims.guest.image import build

    return build.build_guest_image(
        kernel=kernel, initramfs=initramfs, init=init, modules=modules, state=state,
        progress=progress,
    )  # fmt: skip
