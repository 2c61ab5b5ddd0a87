"""``linux.namespaces``: what is new, what is the VM's, what belongs to another container of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shims.guest.plan.reading import Reader

__all__ = ["compile_namespaces"]

_KINDS = {
    "mount": guest_pb2.Namespace.KIND_MOUNT,
    "pid": guest_pb2.Namespace.KIND_PID,
    "ipc": guest_pb2.Namespace.KIND_IPC,
    "uts": guest_pb2.Namespace.KIND_UTS,
    "network": guest_pb2.Namespace.KIND_NETWORK,
    "cgroup": guest_pb2.Namespace.KIND_CGROUP,
    "time": guest_pb2.Namespace.KIND_TIME,
}
# time(7); linux/time.h
_CLOCKS = {"monotonic": 1, "boottime": 7}

_JOIN_ADVICE = {
    "pid": "its own pid namespace, or that of a container in the same VM",
    "ipc": "its own ipc namespace, or that of a container in the same VM",
    "uts": "its own uts namespace, or that of a container in the same VM",
    "network": "a network namespace that the VM carries; this VM has loopback only",
    "mount": "its own mount namespace: the host's mounts are not in the VM",
    "cgroup": "its own cgroup namespace: the guest has its own cgroups",
    "time": "its own time namespace",
}


def _joined(
    entry: Reader, name: str, network: Literal["loopback", "vm"], joins: Mapping[str, str]
) -> guest_pb2.Namespace | None:
    """Return the namespace for an entry with a path; None for the VM's own."""
    path = entry.text("path")
    if name == "network" and network == "vm":
        return None
    if path in joins and name in ("pid", "ipc", "uts", "network"):
        return guest_pb2.Namespace(kind=_KINDS[name], join_container=joins[path])
    raise InputError(entry.at("path"), path, _JOIN_ADVICE[name])


def _compile(
    entry: Reader, name: str, network: Literal["loopback", "vm"], joins: Mapping[str, str]
) -> guest_pb2.Namespace | None:
    if entry.text("path"):
        return _joined(entry, name, network, joins)
    if name == "network" and network == "loopback":
        # The VM's own has loopback and nothing else: it is as new as one that were made now.
        return None
    return guest_pb2.Namespace(kind=_KINDS[name])


def _offsets(linux: Reader, has_time: bool) -> list[guest_pb2.TimeOffset]:
    offsets = linux.get("timeOffsets")
    if offsets.value and not has_time:
        raise InputError(offsets.path, dict(offsets.value), "time offsets beside a time namespace")
    compiled = []
    for clock in offsets.value:
        if clock not in _CLOCKS:
            raise InputError(offsets.path, clock, ", ".join(_CLOCKS))
        offset = offsets.get(clock)
        compiled.append(
            guest_pb2.TimeOffset(
                clock=_CLOCKS[clock],
                seconds=offset.number("secs", least=-(2**62), most=2**62),
                nanoseconds=offset.number("nanosecs", most=999_999_999),
            )
        )
    return compiled


def compile_namespaces(
    linux: Reader, *, network: Literal["loopback", "vm"], joins: Mapping[str, str]
) -> tuple[list[guest_pb2.Namespace], list[guest_pb2.TimeOffset]]:
    """Return the namespaces of a container, and the offsets of its time namespace.

    A type that the spec leaves out means the runtime's own, which is the VM's: still nobody
    else's. Mount and cgroup namespaces are always new, since pivoting and hiding the VM's cgroups
    need them.
    """
    compiled = {name: guest_pb2.Namespace(kind=_KINDS[name]) for name in ("mount", "cgroup")}
    seen: set[str] = set()
    for entry in linux.objects("namespaces"):
        name = entry.text("type")
        if name == "user":
            raise InputError(
                entry.path,
                name,
                "no user namespace: the VM already keeps the container's root from the host's",
            )
        if name not in _KINDS:
            raise InputError(entry.at("type"), name, ", ".join(_KINDS))
        if name in seen:
            raise InputError(entry.at("type"), name, "each type once")
        seen.add(name)
        namespace = _compile(entry, name, network, joins)
        if namespace is not None:
            compiled[name] = namespace
    offsets = _offsets(linux, "time" in compiled)
    return list(compiled.values()), offsets
