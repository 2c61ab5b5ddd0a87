"""How large a container's microVM is: pure arithmetic on settings and the OCI configuration.

``memory_mib`` is what the containers may use together. The engine adds what the guest itself needs
and rounds up to one of few sizes, so that few templates serve all; the limit proper is enforced by
cgroups inside the guest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shims.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shims.containerd.shim.config import Settings

__all__ = ["DEFAULT_MEMORY_MIB", "VmSize", "host_memory_mib", "host_oom_score", "size_vm"]

DEFAULT_MEMORY_MIB = 512
_MIB = 1 << 20
_MOST_DIGITS = 19  # of a signed number of 64 bits; Python reads some thousand, and fails at more
_SANDBOX_MEMORY = "io.kubernetes.cri.sandbox-memory"


@dataclass(frozen=True)
class VmSize:
    """What the VM gives its containers."""

    vcpus: int
    memory_mib: int


def size_vm(settings: Settings, spec: Mapping[str, Any], host_mib: int) -> VmSize:
    """Return the size of the VM for the first container of a group.

    ``spec`` is the parsed ``config.json``; ``host_mib`` the memory of this host. An explicit size
    is taken as it is, and refused (``InputError``) above the host's memory. A limit above it is no
    error (runc has none there either), the VM is then as large as the host.
    """
    if settings.memory_mib is not None:
        if settings.memory_mib > host_mib:
            raise InputError("memory", settings.memory_mib, f"at most the host's {host_mib} MiB")
        return VmSize(settings.vcpus, settings.memory_mib)
    limit = _sandbox_limit(spec) or _container_limit(spec)
    if not limit:
        return VmSize(settings.vcpus, DEFAULT_MEMORY_MIB)
    return VmSize(settings.vcpus, min(-(-limit // _MIB), host_mib))


def _container_limit(spec: Mapping[str, Any]) -> int:
    linux = spec.get("linux") or {}
    resources = linux.get("resources") or {}
    limit = (resources.get("memory") or {}).get("limit")
    if limit is None:
        return 0
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise InputError("linux.resources.memory.limit", limit, "a number of bytes")
    return max(limit, 0)  # -1 says unlimited


def _sandbox_limit(spec: Mapping[str, Any]) -> int:
    """Return the sum over a pod's containers that kubelet computed, 0 when there is none."""
    text = (spec.get("annotations") or {}).get(_SANDBOX_MEMORY, "")
    if not text:
        return 0
    if not str(text).isdecimal() or len(str(text)) > _MOST_DIGITS:
        raise InputError(_SANDBOX_MEMORY, text, "a number of bytes")
    return int(text)


def host_oom_score(spec: Mapping[str, Any]) -> int:
    """Return the score of the VM among the host's processes, which is its container's.

    The container's memory is QEMU's, so that is where the host's kernel has to find it. Without a
    score in ``spec`` it is the usual 0 and not ours: containerd, from which we have ours, is the
    last that should go, and what it runs is not.
    """
    score = (spec.get("process") or {}).get("oomScoreAdj", 0)
    if isinstance(score, bool) or not isinstance(score, int) or not -1000 <= score <= 1000:
        raise InputError("process.oomScoreAdj", score, "a whole number from -1000 to 1000")
    return score


def host_memory_mib() -> int:
    """Return the memory of this host."""
    import os

    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB
