"""What each bind mount of a container is, and so which way it takes into the VM.

=========  ===================================================  ==================================
way        what                                                 why
=========  ===================================================  ==================================
``push``   small read-only files; Kubernetes' API volumes       no device, inotify works inside
``guest``  emptyDir, the pod's /dev/shm                         only the pod's containers use them
``share``  other directories, large or writable files           the host must see the same content
=========  ===================================================  ==================================

One ``share`` makes the VM a q35 with its own memory, which costs time and memory; that is why the
decision is taken here, early and from the configuration alone. Sockets, fifos and devices cannot
cross into a VM and are refused with a sentence that says what can.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from shims.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["PUSH_LIMIT", "Volume", "Way", "classify_mounts", "is_bind", "root_is_directory"]

PUSH_LIMIT = 1 << 20
"""Largest read-only file that is copied into the VM instead of shared."""

_API_VOLUMES = (
    "/volumes/kubernetes.io~configmap/",
    "/volumes/kubernetes.io~secret/",
    "/volumes/kubernetes.io~projected/",
    "/volumes/kubernetes.io~downward-api/",
)
_EMPTY_DIR = "/volumes/kubernetes.io~empty-dir/"
_SANDBOX_DIRS = ("/io.containerd.grpc.v1.cri/sandboxes/",)
_POD_FILES = ("/etc-hosts", "/hostname", "/resolv.conf", "/hosts")
"""Files that kubelet and containerd write for a pod. They arrive writable, but only we write."""


class Way(Enum):
    """How a bind mount gets into the VM."""

    PUSH = "push"
    GUEST = "guest"
    SHARE = "share"


@dataclass(frozen=True)
class Volume:
    """One bind mount: its index in the configuration's ``mounts``, and what it is."""

    index: int
    way: Way
    source: str
    readonly: bool
    is_file: bool


def is_bind(mount: Mapping[str, Any]) -> bool:
    """Whether a mount of the configuration is a bind mount, as runc decides it."""
    options = mount.get("options") or ()
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options


def root_is_directory(spec: Mapping[str, Any], bundle: str) -> bool:
    """Whether the root file system is a directory of the user's (``ctr run --rootfs DIR``).

    Otherwise ``root.path`` is the bundle's ``rootfs``, on which Create's mounts belong.
    """
    path = os.path.normpath(os.path.join(bundle, (spec.get("root") or {}).get("path") or "rootfs"))
    return path != os.path.normpath(os.path.join(bundle, "rootfs"))


def classify_mounts(
    spec: Mapping[str, Any],
    bundle: str,
    lstat: Callable[[str], os.stat_result] = os.stat,
) -> list[Volume]:
    """Return a volume for every bind mount of ``spec``.

    ``lstat`` looks at a path (links followed, as the kernel follows them in a mount). Raises
    ``InputError`` naming the mount that is missing or cannot be carried into a VM.
    """
    return [
        _classify(index, mount, bundle, lstat)
        for index, mount in enumerate(spec.get("mounts") or ())
        if is_bind(mount)
    ]


def _classify(
    index: int, mount: Mapping[str, Any], bundle: str, look: Callable[[str], os.stat_result]
) -> Volume:
    field = f"mounts[{index}].source"
    given = mount.get("source")
    if not isinstance(given, str) or not given:
        raise InputError(field, given, "a path of the host")
    source = os.path.normpath(os.path.join(bundle, given))
    try:
        found = look(source)
    except OSError as error:
        raise InputError(field, source, f"an existing path ({error.strerror})") from error
    except ValueError as error:  # a NUL byte, or no text at all
        raise InputError(field, source, f"a path of the host ({error})") from error
    kind = stat.S_IFMT(found.st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise InputError(field, source, "a file or directory", hint=_advice(kind))
    readonly = "ro" in (mount.get("options") or ())
    is_file = kind == stat.S_IFREG
    way = _way(source, readonly=readonly, is_file=is_file, size=found.st_size)
    return Volume(index, way, source, readonly, is_file)


def _way(source: str, *, readonly: bool, is_file: bool, size: int) -> Way:
    if _EMPTY_DIR in source:
        return Way.GUEST
    if any(part in source for part in _SANDBOX_DIRS) and source.endswith("/shm"):
        return Way.GUEST
    if any(part in source for part in _API_VOLUMES):
        return Way.PUSH
    if is_file and size <= PUSH_LIMIT and (readonly or _is_pod_file(source)):
        return Way.PUSH
    return Way.SHARE


def _is_pod_file(source: str) -> bool:
    of_pod = "/pods/" in source or any(part in source for part in _SANDBOX_DIRS)
    return of_pod and source.endswith(_POD_FILES)


def _advice(kind: int) -> str:
    if kind == stat.S_IFSOCK:
        return "a socket of the host does not reach into a microVM: use the network"
    if kind == stat.S_IFIFO:
        return "a fifo of the host does not reach into a microVM: use stdin and stdout"
    return (
        "a device of the host does not reach into a microVM: mount a disk's file system on the"
        " host, and give the directory"
    )
