"""The container's root and its mounts, as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import InputError
from shims.guest.plan.model import CONTAINERS, GuestSource, Rootfs
from shims.guest.plan.options import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MountOptions,
    parse_options,
)
from shims.guest.plan.reading import Reader, encode_path

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["brings_own_dev", "late_remounts", "mount_steps", "rootfs_path", "rootfs_steps"]

_DISK_WAIT_MS = 10_000
_SHARE_TYPE = "virtiofs"

# File systems without a device: the guest's kernel makes them up, as the host's would.
_WITHOUT_DEVICE = frozenset(
    (
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "proc",
        "pstore",
        "ramfs",
        "securityfs",
        "sysfs",
        "tmpfs",
        "tracefs",
    )
)


def rootfs_path(container_id: str) -> str:
    """Return the guest path at which a container's root is put together."""
    return f"{CONTAINERS}/{container_id}/rootfs"


def _step(mount: guest_pb2.MountStep) -> guest_pb2.Step:
    return guest_pb2.Step(mount=mount)


def _from_source(source: GuestSource, path: str) -> guest_pb2.MountStep:
    """Return a mount of content that the host provides; target and flags are the caller's."""
    subpath = source.path.strip("/")
    if source.kind == "pushed":
        whole = f"{source.name}/{subpath}" if subpath else source.name
        return guest_pb2.MountStep(
            source_kind=guest_pb2.MountStep.SOURCE_PATH, source=encode_path(whole), flags=MS_BIND
        )
    if source.kind == "share":
        kind, fstype, wait = guest_pb2.MountStep.SOURCE_TAG, _SHARE_TYPE, 0
    else:
        kind, fstype, wait = guest_pb2.MountStep.SOURCE_DISK, source.fstype, _DISK_WAIT_MS
    if not fstype:
        raise InputError(path, source.name, "a disk with a known file system")
    return guest_pb2.MountStep(
        source_kind=kind,
        source=encode_path(source.name),
        fstype=fstype,
        source_subpath=encode_path(subpath),
        wait_ms=wait,
    )


# ---- the root ----------------------------------------------------------------------------------


def _guest_mount(mount: guest_pb2.MountStep, target: str, flags: int) -> guest_pb2.Step:
    mount.where = guest_pb2.WHERE_GUEST
    mount.target = encode_path(target)
    mount.flags |= flags
    mount.make_target = True
    return _step(mount)


def _guest_directory(path: str, mode: int) -> guest_pb2.Step:
    return guest_pb2.Step(
        directory=guest_pb2.DirectoryStep(
            where=guest_pb2.WHERE_GUEST, path=encode_path(path), mode=mode
        )
    )


def _overlay_steps(rootfs: Rootfs, base: str, target: str) -> list[guest_pb2.Step]:
    steps = []
    lower = []
    for index, layer in enumerate(rootfs.layers):
        lower.append(f"{base}/lower{index}")
        steps.append(_guest_mount(_from_source(layer, "rootfs"), lower[-1], MS_RDONLY))
    options = [f"lowerdir={':'.join(lower)}", f"upperdir={base}/upper/upper"]
    options.append(f"workdir={base}/upper/work")
    if rootfs.upper is None:
        upper = guest_pb2.MountStep(
            source_kind=guest_pb2.MountStep.SOURCE_NONE,
            source=b"tmpfs",
            fstype="tmpfs",
            data=b"mode=0755",
        )
    else:
        upper = _from_source(rootfs.upper, "rootfs")
        # The disk does not outlive the container, so nothing has to reach it in a certain order.
        options.append("volatile")
    steps += [
        _guest_mount(upper, f"{base}/upper", 0),
        _guest_directory(f"{base}/upper/upper", 0o755),
        _guest_directory(f"{base}/upper/work", 0o700),
    ]
    overlay = guest_pb2.MountStep(
        source_kind=guest_pb2.MountStep.SOURCE_NONE,
        source=b"overlay",
        fstype="overlay",
        data=encode_path(",".join(options)),
    )
    return [*steps, _guest_mount(overlay, target, 0)]


def rootfs_steps(rootfs: Rootfs, container_id: str) -> list[guest_pb2.Step]:
    """Return the steps that put the root together at :func:`rootfs_path`.

    Even a read-only root is assembled writable: mount points have to be made in it. The pivot
    makes it read-only.
    """
    target = rootfs_path(container_id)
    if rootfs.share is not None:
        return [_guest_mount(_from_source(rootfs.share, "rootfs"), target, 0)]
    if not rootfs.layers:
        raise InputError("rootfs", "nothing", "at least one layer, or a share")
    return _overlay_steps(rootfs, f"{CONTAINERS}/{container_id}", target)


# ---- mounts of the spec ------------------------------------------------------------------------


def _destination(mount: Reader) -> str:
    destination = mount.text("destination")
    if not destination:
        raise InputError(mount.at("destination"), destination, "an absolute path")
    return destination if destination.startswith("/") else f"/{destination}"


def _options(mount: Reader) -> MountOptions:
    options = parse_options(mount.texts("options"), mount.at("options"))
    if mount.text("type") == "bind":
        options.flags |= MS_BIND
    return options


def _cgroup_mount(options: MountOptions) -> MountOptions:
    """Whatever the host has, the guest has cgroup v2, seen through a cgroup namespace."""
    return MountOptions(
        flags=(options.flags & MS_RDONLY) | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RELATIME,
        propagation=options.propagation,
    )


def _plain_mount(mount: Reader, options: MountOptions) -> guest_pb2.MountStep:
    fstype = mount.text("type")
    if options.is_bind:
        raise InputError(
            mount.at("source"), mount.text("source"), "a path that the shim brought into the VM"
        )
    if fstype not in _WITHOUT_DEVICE:
        raise InputError(
            mount.at("type"),
            fstype,
            "a bind mount, or a file system without a device (tmpfs, proc, sysfs, …)",
            hint="mount it on the host, and bind the directory",
        )
    label = mount.text("source") or fstype
    return guest_pb2.MountStep(
        source_kind=guest_pb2.MountStep.SOURCE_NONE,
        source=encode_path(label),
        fstype="cgroup2" if fstype == "cgroup" else fstype,
    )


def _mount_step(mount: Reader, source: GuestSource | None) -> guest_pb2.Step:
    options = _options(mount)
    if mount.text("type") == "cgroup":
        options = _cgroup_mount(options)
    planned = _plain_mount(mount, options) if source is None else _from_source(source, mount.path)
    binds = bool(planned.flags & MS_BIND)
    planned.flags |= options.flags if binds else options.flags & ~(MS_BIND | MS_REC)
    if _is_remounted_later(mount, options):
        planned.flags &= ~MS_RDONLY
    planned.where = guest_pb2.WHERE_ROOTFS
    planned.target = encode_path(_destination(mount))
    planned.data = encode_path(",".join(options.data)) if not binds and source is None else b""
    planned.propagation = options.propagation
    planned.set_attributes = options.set_attributes
    planned.clear_attributes = options.clear_attributes
    planned.copy_up = options.copy_up
    planned.make_target = True
    if options.copy_up and planned.fstype != "tmpfs":
        raise InputError(mount.at("options"), "tmpcopyup", "tmpcopyup on a tmpfs")
    return _step(planned)


def mount_steps(spec: Reader, sources: Mapping[int, GuestSource]) -> list[guest_pb2.Step]:
    """Return the spec's mounts in order; ``sources`` says where those of the host are."""
    return [
        _mount_step(mount, sources.get(index)) for index, mount in enumerate(spec.objects("mounts"))
    ]


def _is_remounted_later(mount: Reader, options: MountOptions) -> bool:
    """A read-only tmpfs is filled first: device nodes, mount points, what is copied up."""
    return mount.text("type") == "tmpfs" and bool(options.flags & MS_RDONLY)


def late_remounts(spec: Reader) -> list[guest_pb2.Step]:
    """Return the steps that make tmpfs mounts read-only once everything is in them."""
    return [
        guest_pb2.Step(
            remount=guest_pb2.RemountStep(path=encode_path(_destination(mount)), flags=MS_RDONLY)
        )
        for mount in spec.objects("mounts")
        if _is_remounted_later(mount, _options(mount))
    ]


def brings_own_dev(spec: Reader) -> bool:
    """Tell whether ``/dev`` is bound from elsewhere and has to be left as it is."""
    return any(
        _destination(mount).rstrip("/") == "/dev" and _options(mount).is_bind
        for mount in spec.objects("mounts")
    )
