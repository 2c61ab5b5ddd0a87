"""What the compiler is told besides the spec: where things are in the guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CONTAINERS", "GuestSource", "Rootfs", "Streams"]

CONTAINERS = "/run/void/c"
"""Guest directory below which each container has its mount points."""


@dataclass(frozen=True)
class GuestSource:
    """Where the guest finds content that the host provides."""

    kind: Literal["disk", "share", "pushed"]
    """A block device, a virtiofs share, or a path of the guest's own file system."""
    name: str
    """The disk's serial number, the share's tag, or the absolute guest path."""
    path: str = ""
    """The part of it that is meant, relative; empty for all of it."""
    fstype: str = ""
    """The file system of a disk."""


@dataclass(frozen=True)
class Rootfs:
    """How a container's root file system is put together."""

    layers: tuple[GuestSource, ...] = ()
    """Read-only trees, topmost first."""
    upper: GuestSource | None = None
    """The disk that takes what is written; None: a tmpfs, so that it lives in the VM's memory."""
    share: GuestSource | None = None
    """Instead of layers: one writable tree."""
    readonly: bool = False
    """The container sees it read-only (besides what the spec says)."""


@dataclass(frozen=True)
class Streams:
    """Which of a process's streams have somebody at the other end; the rest is /dev/null."""

    stdin: bool = True
    stdout: bool = True
    stderr: bool = True
