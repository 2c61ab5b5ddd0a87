"""``config.json`` → ``LaunchPlan``: the parts, in the order in which void-init runs them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import InputError
from shims.guest.plan.devices import compile_device_filter, device_steps
from shims.guest.plan.fields import refuse_unsupported
from shims.guest.plan.model import GuestSource, Rootfs, Streams
from shims.guest.plan.mounts import (
    brings_own_dev,
    late_remounts,
    mount_steps,
    rootfs_path,
    rootfs_steps,
)
from shims.guest.plan.namespaces import compile_namespaces
from shims.guest.plan.options import PROPAGATIONS
from shims.guest.plan.process import fill_process
from shims.guest.plan.reading import Reader, encode_path
from shims.guest.plan.resources import compile_resources
from shims.guest.plan.seccomp import compile_seccomp
from shims.guest.plan.sysctls import sysctl_steps

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["compile_plan", "compile_process", "compile_update"]

# linux/personality.h
_PERSONALITIES = {"LINUX": 0, "LINUX32": 8}


def compile_plan(
    spec: Mapping[str, Any],
    *,
    container_id: str,
    rootfs: Rootfs,
    sources: Mapping[int, GuestSource],
    cgroup_path: str | None = None,
    network: Literal["loopback", "vm"] = "loopback",
    joins: Mapping[str, str] | None = None,
    streams: Streams | None = None,
) -> guest_pb2.LaunchPlan:
    """Compile an OCI spec.

    ``rootfs`` and ``sources`` (by index in ``spec["mounts"]``) say where the host's content is in
    the guest. ``network`` says what the VM carries: the pod's network (``vm``), so that the
    namespace which the spec names is the VM's own, or nothing but loopback. ``joins`` maps paths
    of namespaces that the spec joins to the container of the same VM that has them.

    Raises :class:`InputError` with the path of the field that a VM cannot carry out.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", container_id):
        raise InputError("id", container_id, "letters, digits, '.', '_' and '-'")
    refuse_unsupported(spec)
    whole = Reader(spec, "")
    linux = whole.get("linux")
    namespaces, offsets = compile_namespaces(linux, network=network, joins=joins or {})
    plan = guest_pb2.LaunchPlan(
        container_id=container_id,
        namespaces=namespaces,
        cgroup=guest_pb2.Cgroup(
            path=cgroup_path or container_id,
            writes=compile_resources(linux.get("resources")),
            device_filter=compile_device_filter(linux.get("resources")),
        ),
        rootfs=encode_path(rootfs_path(container_id)),
        time_offsets=offsets,
    )
    plan.steps.extend(_steps(whole, container_id, rootfs, sources, plan))
    process = compile_process(spec.get("process") or {}, spec=spec, streams=streams)
    plan.process.CopyFrom(process)
    return plan


def compile_process(
    process: Mapping[str, Any],
    *,
    spec: Mapping[str, Any] | None = None,
    streams: Streams | None = None,
) -> guest_pb2.ProcessPlan:
    """Compile ``process`` of a spec, or the OCI process of an exec.

    ``spec`` is the container's: its seccomp profile and personality hold for every process in it.
    """
    refuse_unsupported(process, "process")
    plan = guest_pb2.ProcessPlan()
    fill_process(Reader(process, "process"), plan, streams or Streams())
    linux = Reader(spec or {}, "").get("linux")
    plan.seccomp, plan.seccomp_flags = compile_seccomp(linux.get("seccomp"))
    if linux.has("personality"):
        plan.personality = linux.get("personality").choice("domain", _PERSONALITIES)
    return plan


def compile_update(resources: Mapping[str, Any]) -> list[guest_pb2.CgroupWrite]:
    """Compile new ``linux.resources`` of a running container. Device rules stay as they are."""
    refuse_unsupported(resources, "linux.resources")
    return compile_resources(Reader(resources, "linux.resources"))


def _steps(
    spec: Reader,
    container_id: str,
    rootfs: Rootfs,
    sources: Mapping[int, GuestSource],
    plan: guest_pb2.LaunchPlan,
) -> list[guest_pb2.Step]:
    linux = spec.get("linux")
    return [
        guest_pb2.Step(link_up=guest_pb2.LinkUpStep(name="lo")),
        *_names(spec, plan),
        *sysctl_steps(linux),
        *rootfs_steps(rootfs, container_id),
        *mount_steps(spec, sources),
        *([] if brings_own_dev(spec) else device_steps(linux)),
        *_working_directory(spec),
        *_hidden_paths(linux),
        *late_remounts(spec),
        _pivot(spec, rootfs),
    ]


def _names(spec: Reader, plan: guest_pb2.LaunchPlan) -> list[guest_pb2.Step]:
    hostname, domainname = spec.text("hostname"), spec.text("domainname")
    if not hostname and not domainname:
        return []
    new_uts = guest_pb2.Namespace(kind=guest_pb2.Namespace.KIND_UTS)
    if new_uts not in plan.namespaces:
        # Joined or shared: the name there is not this container's to change. A pod's containers
        # carry the sandbox's hostname in their specs without meaning to set it again.
        return []
    for name, value in (("hostname", hostname), ("domainname", domainname)):
        if len(encode_path(value)) > 64:
            raise InputError(name, value, "at most 64 bytes")
    step = guest_pb2.HostnameStep(hostname=hostname, domainname=domainname)
    return [guest_pb2.Step(hostname=step)]


def _working_directory(spec: Reader) -> list[guest_pb2.Step]:
    """The working directory is made where the image lacks it, as the reference runtime does."""
    cwd = spec.get("process").text("cwd", "/")
    if cwd.strip("/") == "":
        return []
    step = guest_pb2.DirectoryStep(where=guest_pb2.WHERE_ROOTFS, path=encode_path(cwd), mode=0o755)
    return [guest_pb2.Step(directory=step)]


def _absolute_paths(linux: Reader, name: str) -> list[bytes]:
    paths = linux.texts(name)
    for index, path in enumerate(paths):
        if not path.startswith("/"):
            raise InputError(f"{linux.at(name)}[{index}]", path, "an absolute path")
    return [encode_path(path) for path in paths]


def _hidden_paths(linux: Reader) -> list[guest_pb2.Step]:
    return [
        *(
            guest_pb2.Step(readonly=guest_pb2.ReadonlyStep(path=path))
            for path in _absolute_paths(linux, "readonlyPaths")
        ),
        *(
            guest_pb2.Step(mask=guest_pb2.MaskStep(path=path))
            for path in _absolute_paths(linux, "maskedPaths")
        ),
    ]


def _pivot(spec: Reader, rootfs: Rootfs) -> guest_pb2.Step:
    linux = spec.get("linux")
    propagation = 0
    if linux.text("rootfsPropagation"):
        propagation = linux.choice("rootfsPropagation", PROPAGATIONS)
    return guest_pb2.Step(
        pivot=guest_pb2.PivotStep(
            readonly=rootfs.readonly or spec.get("root").flag("readonly"), propagation=propagation
        )
    )
