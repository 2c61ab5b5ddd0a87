"""The verdict on every field of the OCI runtime spec for Linux (version 1.2 and its successors).

``CARRIED`` fields reach the launch plan; an :class:`Ignored` one is left out for the reason given;
a :class:`Refused` one makes the container fail at Create, with advice. A verdict covers what is
below the field, unless that has one of its own. ``[]`` stands for any item of a list, ``*`` for any
key of an object. A test holds this table against the list of fields of the spec.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shims.core.errors import InputError

__all__ = [
    "CARRIED",
    "VERDICTS",
    "Finding",
    "Ignored",
    "Refused",
    "ignored_fields",
    "refuse_unsupported",
]


@dataclass(frozen=True)
class Finding:
    """A field of a spec that has no effect in the VM, and why."""

    field: str
    reason: str


@dataclass(frozen=True)
class Ignored:
    """Left out, because."""

    reason: str
    usual: bool = False
    """Part of nearly every spec, and nobody expects an effect: not worth a finding."""


@dataclass(frozen=True)
class Refused:
    """Not possible; what would be."""

    allowed: str
    hint: str = ""


CARRIED = "carried"

_NOT_LINUX = Refused("a Linux container: the VM runs a Linux kernel")
_LSM = Ignored("the guest's kernel runs no AppArmor or SELinux policy; the VM is the boundary")
_HOST_NUMBERS = Refused(
    "no limits by device number: the host's numbers mean other disks in the VM",
    hint="limit the I/O of the pod's cgroup on the host",
)
_HOST_CPUS = Ignored(
    "the numbers are the host's; the VM's CPUs are held to the pod's cgroup on the host"
)
_NO_ID_MAPS = Refused(
    "no user namespace and no id mapping: the VM keeps the container's root from the host's",
    hint="leave user namespaces to containers that share the host's kernel",
)
_NO_V2 = Ignored("the guest has cgroup v2, which has no such control")
_NO_HOOKS = Refused(
    "no hooks: they expect the container's process and namespaces on the host",
    hint="do the work in the container, or on containerd's events",
)
_NO_REALTIME = Refused("no realtime CPU limits: cgroup v2 has none")

VERDICTS: Mapping[str, str | Ignored | Refused] = {
    "ociVersion": Ignored("fields are judged one by one, not by version", usual=True),
    "annotations": Ignored("the shim reads its own; a process cannot see them", usual=True),
    "hostname": CARRIED,
    "domainname": CARRIED,
    "root": CARRIED,
    "root.path": Ignored("where the root is in the guest is the shim's to say", usual=True),
    "mounts": CARRIED,
    "mounts[].source": CARRIED,
    "mounts[].uidMappings": _NO_ID_MAPS,
    "mounts[].gidMappings": _NO_ID_MAPS,
    "process": CARRIED,
    "process.apparmorProfile": _LSM,
    "process.selinuxLabel": _LSM,
    "process.commandLine": Ignored("it is for Windows"),
    "process.user.username": Ignored("it is for Windows"),
    "hooks": _NO_HOOKS,
    "linux": CARRIED,
    "linux.cgroupsPath": Ignored(
        "it names a cgroup of the host, where the VM itself is; the guest has one per container",
        usual=True,
    ),
    "linux.mountLabel": _LSM,
    "linux.uidMappings": _NO_ID_MAPS,
    "linux.gidMappings": _NO_ID_MAPS,
    "linux.intelRdt": Refused(
        "no cache allocation: the guest cannot see the CPU's resource control",
        hint="put the VM's own process into a resource group on the host",
    ),
    "linux.personality.domain": CARRIED,
    "linux.personality.flags": Ignored("the spec defines no flag"),
    "linux.netDevices": Refused(
        "no host network devices: the VM has the pod's network on a device of its own"
    ),
    "linux.memoryPolicy": Refused("no NUMA policy: the VM has one node"),
    "linux.seccomp.listenerPath": Refused(
        "no seccomp listener: nothing on the host can read a container's memory in a VM"
    ),
    "linux.seccomp.listenerMetadata": Ignored("it goes to a listener, and there is none"),
    "linux.resources.blockIO.leafWeight": _NO_V2,
    "linux.resources.blockIO.weightDevice": _HOST_NUMBERS,
    "linux.resources.blockIO.throttleReadBpsDevice": _HOST_NUMBERS,
    "linux.resources.blockIO.throttleWriteBpsDevice": _HOST_NUMBERS,
    "linux.resources.blockIO.throttleReadIOPSDevice": _HOST_NUMBERS,
    "linux.resources.blockIO.throttleWriteIOPSDevice": _HOST_NUMBERS,
    "linux.resources.cpu.cpus": _HOST_CPUS,
    "linux.resources.cpu.mems": _HOST_CPUS,
    "linux.resources.cpu.realtimeRuntime": _NO_REALTIME,
    "linux.resources.cpu.realtimePeriod": _NO_REALTIME,
    "linux.resources.memory.kernel": _NO_V2,
    "linux.resources.memory.kernelTCP": _NO_V2,
    "linux.resources.memory.swappiness": _NO_V2,
    "linux.resources.memory.disableOOMKiller": _NO_V2,
    "linux.resources.memory.useHierarchy": Ignored("cgroup v2 always counts what is below"),
    "linux.resources.memory.checkBeforeUpdate": Ignored(
        "the guest's kernel reclaims first, and reports an OOM kill if that was not enough"
    ),
    "linux.resources.network": _NO_V2,
    "linux.resources.rdma": Refused("no RDMA limits: the VM has no RDMA device"),
    "solaris": _NOT_LINUX,
    "windows": _NOT_LINUX,
    "freebsd": _NOT_LINUX,
    "zos": _NOT_LINUX,
    "vm": Ignored("kernel, image and hypervisor are chosen by the shim's own configuration"),
}

# Below a carried object, these are the fields there are; anything else is not of the spec.
_KNOWN = {
    "": "ociVersion annotations hostname domainname root mounts process hooks linux solaris windows"
    " freebsd zos vm",
    "root": "path readonly",
    "mounts[]": "destination source type options uidMappings gidMappings",
    "process": "args commandLine consoleSize cwd env terminal user capabilities apparmorProfile"
    " oomScoreAdj selinuxLabel ioPriority noNewPrivileges scheduler rlimits execCPUAffinity",
    "process.consoleSize": "height width",
    "process.user": "uid gid umask additionalGids username",
    "process.capabilities": "bounding permitted effective inheritable ambient",
    "process.ioPriority": "class priority",
    "process.scheduler": "policy nice priority flags runtime deadline period",
    "process.rlimits[]": "type soft hard",
    "process.execCPUAffinity": "initial final",
    "linux": "devices uidMappings gidMappings namespaces resources cgroupsPath rootfsPropagation"
    " seccomp sysctl maskedPaths readonlyPaths mountLabel intelRdt personality timeOffsets"
    " netDevices memoryPolicy",
    "linux.devices[]": "type path major minor fileMode uid gid",
    "linux.namespaces[]": "type path",
    "linux.personality": "domain flags",
    "linux.timeOffsets.*": "secs nanosecs",
    "linux.seccomp": "defaultAction defaultErrnoRet flags listenerPath listenerMetadata"
    " architectures syscalls",
    "linux.seccomp.syscalls[]": "names action errnoRet args",
    "linux.seccomp.syscalls[].args[]": "index value valueTwo op",
    "linux.resources": "unified devices pids blockIO cpu hugepageLimits memory network rdma",
    "linux.resources.devices[]": "allow type major minor access",
    "linux.resources.pids": "limit",
    "linux.resources.blockIO": "weight leafWeight weightDevice throttleReadBpsDevice"
    " throttleWriteBpsDevice throttleReadIOPSDevice throttleWriteIOPSDevice",
    "linux.resources.cpu": "cpus mems period quota burst realtimePeriod realtimeRuntime shares"
    " idle",
    "linux.resources.hugepageLimits[]": "pageSize limit",
    "linux.resources.memory": "limit reservation swap kernel kernelTCP swappiness disableOOMKiller"
    " useHierarchy checkBeforeUpdate",
    "linux.resources.network": "classID priorities",
}
KNOWN: Mapping[str, frozenset[str]] = {
    path: frozenset(names.split()) for path, names in _KNOWN.items()
}
# Objects whose keys are data, each with the path that their values are judged by.
_OPEN = {"linux.timeOffsets": "linux.timeOffsets.*"}


# Objects that say something by a key alone.
_KEYS_SPEAK = frozenset({"linux.netDevices", "linux.resources.rdma"})


def _is_set(value: object) -> bool:
    """Tell a field that says something from one that Go's JSON wrote empty."""
    return value is not None and value not in (False, 0, "", [], {})


def _has_content(value: object) -> bool:
    """Tell the same of a field that is judged as a whole: ``{"prestart": []}`` says nothing."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, Mapping):
            todo.extend(item.values())
        elif isinstance(item, Sequence) and not isinstance(item, str):
            todo.extend(item)
        elif _is_set(item):
            return True
    return False


def _children(value: object, place: str, path: str) -> Iterator[tuple[object, str, str]]:
    """Yield (value, place in the table, path in the spec) of what is inside an object or list."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            inner = f"{place}.{name}" if place else str(name)
            yield item, _OPEN.get(place, inner), f"{path}.{name}" if path else str(name)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield item, f"{place}[]", f"{path}[{index}]"


def _walk(value: object, place: str = "", path: str = "") -> Iterator[tuple[object, str, str]]:
    """Yield every field that says something, an object before what is in it."""
    todo = [(value, place, path)]
    while todo:
        item, item_place, item_path = todo.pop()
        verdict = VERDICTS.get(item_place, CARRIED)
        whole = verdict != CARRIED and item_place not in _KEYS_SPEAK
        if item_path and not (_has_content(item) if whole else _is_set(item)):
            continue
        yield item, item_place, item_path
        if verdict == CARRIED:
            todo.extend(reversed(list(_children(item, item_place, item_path))))


def refuse_unsupported(spec: Mapping[str, Any], place: str = "") -> None:
    """Raise :class:`InputError` for the first field that cannot be carried out."""
    for value, at, path in _walk(spec, place, place):
        verdict = VERDICTS.get(at)
        if isinstance(verdict, Refused):
            raise InputError(path, _short(value), verdict.allowed, hint=verdict.hint)


def _short(value: object) -> object:
    return value if isinstance(value, str | int) else re.sub(r"(.{60}).+", r"\1…", repr(value))


def ignored_fields(spec: Mapping[str, Any]) -> list[Finding]:
    """List the fields that are left out, with their reasons; unknown ones among them."""
    findings = []
    for _, place, path in _walk(spec):
        verdict = VERDICTS.get(place)
        if isinstance(verdict, Ignored) and not verdict.usual:
            findings.append(Finding(path, verdict.reason))
        parent, _, name = place.rpartition(".")
        if place and parent in KNOWN and name not in KNOWN[parent] and not name.endswith("[]"):
            findings.append(Finding(path, "the OCI runtime spec 1.2 has no such field"))
    return findings
