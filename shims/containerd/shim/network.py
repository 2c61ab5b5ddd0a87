"""Which network a container asks for, and whether the group's VM is the one that has it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from shims.core.errors import NotSupported
from shims.microvm.netns import is_host_network

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

__all__ = ["network_of", "network_path", "refuse_late_network"]


_ALWAYS_THERE = frozenset(
    # Tunnels' fallback devices, which some kernels make in every namespace.
    ("lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0",
     "ip6gre0")
)  # fmt: skip


def network_path(spec: Mapping[str, Any]) -> str:
    """Return the network namespace that a VM for this container has to carry; empty for none.

    The host's own is none: a VM must not take the host's network over, and the plan's compiler
    refuses it by the name of its field.
    """
    path = _named(spec)
    return "" if is_host_network(path) else path


def network_of(
    spec: Mapping[str, Any], carried: str, shared: Container[str]
) -> Literal["loopback", "vm"]:
    """Return what the plan's compiler has to know of the VM's network.

    ``carried`` is the path of the namespace that the VM has, empty for loopback only; ``shared``
    are paths that stand for namespaces of the VM (``/proc/PID/ns/net`` of its QEMU).
    """
    path = _named(spec)
    if carried and (not path or path in shared or _same(path, carried)):
        return "vm"
    return "loopback"


def refuse_late_network(pid: int) -> None:
    """Raise ``NotSupported`` when somebody made links in the namespace of the VM's process.

    Some clients (``ctr run --cni``) prepare the network between Create and Start, in the namespace
    of the pid that Create returned. The VM runs by then, and its devices are what they are; a
    container that silently lacks its network would be worse than none.
    """
    place = f"/proc/{pid}"
    try:
        if is_host_network(f"{place}/ns/net"):
            return  # we may not make namespaces: the VM's process is in ours
        with open(f"{place}/net/dev") as table:
            names = [line.partition(":")[0].strip() for line in table if ":" in line]
    except OSError:
        return  # it has ended, which Start notices by itself
    if late := [name for name in names if name not in _ALWAYS_THERE]:
        raise NotSupported(
            f"the network ({', '.join(late)}) was made after the VM",
            hint="make a network namespace first and name it in the configuration, as in "
            "`ctr run --with-ns network:/run/netns/NAME`",
        )


def _named(spec: Mapping[str, Any]) -> str:
    """Return the path of the network namespace that the configuration joins."""
    linux = spec.get("linux")
    namespaces = linux.get("namespaces") if isinstance(linux, dict) else None
    for entry in namespaces if isinstance(namespaces, list) else ():
        if isinstance(entry, dict) and entry.get("type") == "network":
            path = entry.get("path")
            return path if isinstance(path, str) else ""
    return ""


def _same(one: str, other: str) -> bool:
    try:
        return one == other or os.path.samefile(one, other)
    except OSError:
        return False
