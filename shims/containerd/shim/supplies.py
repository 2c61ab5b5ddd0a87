"""What a container needs from the host before its VM is asked: the interface.

``LocalSupplies`` (``attach.py``) is the real one; tests hand in their own. Kept apart so that the
daemon can answer its first request before the modules behind it are imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AsyncExitStack

    from protos.gen.containerd.types import mount_pb2
    from shims.containerd.shim.config import Settings
    from shims.containerd.shim.sizing import VmSize
    from shims.containerd.shim.vm import Vm
    from shims.containerd.shim.volumes import Volume
    from shims.guest.plan.model import GuestSource, Rootfs
    from shims.microvm.config import MachineConfig

__all__ = ["Supplies", "Supply", "Wanted"]


@dataclass(frozen=True)
class Wanted:
    """One container as Create describes it, read and checked."""

    container_id: str
    bundle: str
    spec: Mapping[str, Any]
    mounts: Sequence[mount_pb2.Mount]
    volumes: Sequence[Volume]
    settings: Settings


class Supply(Protocol):
    """What was prepared for one container."""

    @property
    def rootfs(self) -> Rootfs:
        """What the plan's compiler has to know about the root file system."""

    @property
    def sources(self) -> Mapping[int, GuestSource]:
        """By index in the configuration's ``mounts``: where a bind mount's content will be."""

    @property
    def needs_shares(self) -> bool:
        """Whether the VM must be one that takes virtiofs."""

    @property
    def needs_flush(self) -> bool:
        """Whether the guest may hold data that belongs on the host."""

    async def attach(self, vm: Vm, owned: AsyncExitStack) -> None:
        """Bring it into the running VM; ``owned`` gets what undoes that."""


class Supplies(Protocol):
    """The host's side of making containers."""

    async def prepare(self, wanted: Wanted, owned: AsyncExitStack) -> Supply:
        """Prepare root file system and volumes; the VM is not asked. ``owned`` undoes it.

        Raises ``InputError`` for what cannot be brought into a VM.
        """

    def machine_config(
        self,
        name: str,
        namespace: str,
        settings: Settings,
        size: VmSize,
        spec: Mapping[str, Any],
        *,
        shares: bool,
    ) -> MachineConfig:
        """Return what to start for a group. Raises ``NotFound`` without a guest image."""
