"""The host's side of a container: root file system and volumes, made ready and brought into the VM.

What is large goes as a disk, what both sides must see as a virtiofs share, what is small and ours
to write is copied over the guest link. Everything lands on the exit stack of the container that
asked for it, in the order in which it was made.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shims.containerd.shim.volumes import Way, root_is_directory
from shims.core.errors import Conflict, DeadlineExceeded, InputError, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AsyncExitStack

    from shims.containerd.shim.config import Settings
    from shims.containerd.shim.daemon import Launch
    from shims.containerd.shim.sizing import VmSize
    from shims.containerd.shim.supplies import Wanted
    from shims.containerd.shim.vm import Vm
    from shims.containerd.shim.volumes import Volume
    from shims.guest.image.find import GuestImage
    from shims.guest.link import GuestLink
    from shims.guest.plan.model import GuestSource, Rootfs
    from shims.microvm.cgroup import Cgroup
    from shims.microvm.config import MachineConfig
    from shims.microvm.machine import Machine
    from shims.microvm.rootfs import Disk
    from shims.microvm.virtiofs import Share, ShareOptions

__all__ = ["LocalSupplies", "machine_name", "trust_domain"]

_GUEST_FILES = "/run/void/files"
_GUEST_VOLUMES = "/run/void/volumes"
_LONGEST_NAME = 60
_DIGEST = 12
_BUILD_TIMEOUT = 60.0
"""Seconds for the guest image, which takes one or two."""
_PREPARE_TIMEOUT = 105.0
"""Seconds for all that Create needs of the host; kubelet gives up after two minutes."""
_MIB = 1 << 20


def machine_name(namespace: str, group: str) -> str:
    """Return a VM's name: readable, unique on the host, short enough for a file or cgroup.

    The readable part alone would not do: namespaces and ids may have the dash that joins them.
    """
    digest = hashlib.sha256(f"{namespace}/{group}".encode()).hexdigest()[:_DIGEST]
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{namespace}-{group}").lstrip(".")
    return f"{readable[: _LONGEST_NAME - _DIGEST - 1]}-{digest}"


def _require_pci(settings: Settings) -> None:
    """Refuse the one machine type that cannot have what the container needs."""
    if settings.machine == "microvm":
        raise InputError(
            "machine",
            settings.machine,
            "q35 or auto, for a writable mount, a large one or a root that is a directory comes by"
            " virtiofs, which needs PCI",
            hint="leave out dev.void-box.vm.machine, or mount small read-only files only",
        )


def _require_ports(shares: int, shared: list[Volume]) -> None:
    """Refuse more shared directories than a VM has ports for; the root may be one of ``shares``."""
    from shims.microvm.plan import SHARE_PORTS

    if shares > (most := len(SHARE_PORTS)):
        raise InputError(
            f"mounts[{shared[-1].index}].source",
            shared[-1].source,
            f"{most} mounts or roots that are shared with the host, and these are {shares}",
            hint="mount one directory that holds several of them",
        )


def trust_domain(settings: Settings, namespace: str) -> str:
    """Return whom a VM may share a template with: VMs for which this is the same text.

    The operator's domain always counts, the namespace besides where the settings say so. No
    namespace has a slash in it, so the two kinds never meet.
    """
    where = namespace if settings.template == "per-namespace" else ""
    return f"{where}/{settings.trust_domain}" if where or settings.trust_domain else ""


@dataclass(frozen=True)
class _Push:
    """Something to copy into the VM: ``source`` of the host to ``target`` of the guest."""

    source: str
    target: str
    is_file: bool


@dataclass
class LocalSupply:
    """What was prepared for one container on this host."""

    rootfs: Rootfs
    sources: dict[int, GuestSource]
    disks: list[Disk]
    shares: list[Share]
    pushes: list[_Push]
    directories: list[str]

    @property
    def needs_shares(self) -> bool:
        """Whether the VM must be one that takes virtiofs."""
        return bool(self.shares)

    @property
    def needs_flush(self) -> bool:
        """Whether the guest may hold data that belongs on the host."""
        # Scratch disks are writable too, but nobody reads them after the container.
        ours = [disk for disk in self.disks if not disk.readonly and disk.serial[:2] != "u-"]
        return bool(ours) or any(not share.readonly for share in self.shares)

    async def attach(self, vm: Vm, owned: AsyncExitStack) -> None:
        """Bring it into the running VM."""
        for share in self.shares:
            _guard(share, vm, owned)
        for disk in self.disks:
            await vm.attach_disk(
                disk.fd, disk.serial, readonly=disk.readonly, keep_flushes=disk.keep_flushes
            )
            owned.push_async_callback(vm.detach_disk, disk.serial)
        for share in self.shares:
            await vm.attach_share(share.tag, share.socket)
        if not self.pushes and not self.directories:
            return
        from shims.containerd.shim.pushing import make_directory, push

        async def copy(guest: GuestLink) -> None:
            for path in self.directories:
                await make_directory(guest, path)
            for item in self.pushes:
                # Until the container is gone, what the host changes is changed in the VM.
                await owned.enter_async_context(push(guest, item.source, item.target))

        await vm.ask("copy files", copy)


def _guard(share: Share, vm: Vm, owned: AsyncExitStack) -> None:
    """End the VM when a share's virtiofsd dies: who touches it now would wait for ever."""

    def gone(_: asyncio.Future[int]) -> None:
        vm.condemn(f"virtiofsd of share {share.tag} is gone: {share.said() or 'it said nothing'}")

    share.exited.add_done_callback(gone)
    owned.callback(share.exited.remove_done_callback, gone)


class LocalSupplies:
    """``Supplies`` of this host, for one shim."""

    def __init__(self, environ: Mapping[str, str], early: Launch) -> None:
        from shims.core.paths import runtime_dir, state_dir

        self._environ = environ
        self._run_dir = runtime_dir(environ)
        self._state_dir = state_dir(environ)
        self._early = early
        self._resources = early.resources
        self._images: dict[str, GuestImage] = {}

    @asynccontextmanager
    async def start_machine(self, config: MachineConfig) -> AsyncIterator[Machine]:
        """Start a machine, and note for ``delete`` what it holds on the host."""
        from shims.guest.image.find import hold_guest_image
        from shims.microvm.machine import start_machine

        with ExitStack() as held:
            held.enter_context(hold_guest_image(config.image))
            if config.netns:
                self._resources.add_network(config.netns)
                held.callback(self._resources.drop, config.netns)
            launcher = self._early.take(config.name, config.cgroup)
            async with start_machine(config, launcher=launcher) as machine:
                self._resources.add_process(machine.pid, "qemu")
                held.callback(self._resources.drop_process, machine.pid)
                yield machine

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
        """Return what to start for a group. Raises ``NotFound`` without a guest image.

        Raises ``InputError`` when the settings insist on a machine that cannot have ``shares``.
        """
        from shims.containerd.shim.network import network_path
        from shims.containerd.shim.sizing import host_oom_score
        from shims.microvm.config import MachineConfig, QemuUser

        if shares:
            _require_pci(settings)
        cgroup = (spec.get("linux") or {}).get("cgroupsPath")
        identity = hashlib.sha256(f"{namespace}/{name}".encode()).hexdigest()
        config = MachineConfig(
            image=self._image(settings.guest_image),
            name=machine_name(namespace, name),
            state_dir=self._state_dir,
            run_dir=self._run_dir,
            vcpus=size.vcpus,
            memory_mib=size.memory_mib,
            machine="q35" if settings.machine == "q35" else "microvm",
            accelerator=settings.accelerator,  # type: ignore[arg-type]  # the table's choices
            template=settings.template,  # type: ignore[arg-type]
            trust_domain=trust_domain(settings, namespace),
            cgroup=cgroup if isinstance(cgroup, str) and cgroup else None,
            user=QemuUser() if os.geteuid() == 0 else None,
            oom_score_adj=host_oom_score(spec),
            shares=shares,
            netns=network_path(spec),
            hostname=str(spec.get("hostname") or "void")[:63],
            machine_id=identity[:32],
            boot_timeout=settings.boot_timeout,
        )
        # Nothing else bounds a QEMU that its guest has taken over, outside of a pod.
        return replace(config, memory_limit=config.whole_size)

    def _image(self, directory: str) -> GuestImage:
        from shims.guest.image.find import find_guest_image

        if directory not in self._images:
            self._images[directory] = find_guest_image(
                Path(directory) if directory else None, state=self._state_dir
            )
        return self._images[directory]

    async def _require_image(self, directory: str) -> None:
        """Have a guest image; the first container after a kernel's upgrade has it built."""
        try:
            self._image(directory)
        except NotFound:
            if directory:
                raise
            await _build_image(self._environ)
            self._image(directory)

    async def prepare(self, wanted: Wanted, owned: AsyncExitStack) -> LocalSupply:
        """Prepare root file system and volumes. See ``Supplies.prepare``.

        Raises ``DeadlineExceeded`` when that takes longer than containerd's callers wait.
        """
        try:
            async with asyncio.timeout(_PREPARE_TIMEOUT):
                return await self._prepare(wanted, owned)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"container {wanted.container_id} is not prepared after {_PREPARE_TIMEOUT:g} s",
                hint="is its image very large, or a disk of this host very slow?",
            ) from error

    async def _prepare(self, wanted: Wanted, owned: AsyncExitStack) -> LocalSupply:
        from shims.microvm.images import ImageCache
        from shims.microvm.rootfs import Means, needs_share, prepare_rootfs

        await self._require_image(wanted.settings.guest_image)
        root = wanted.spec.get("root") or {}
        directory = ""
        if root_is_directory(wanted.spec, wanted.bundle):
            directory = os.path.join(wanted.bundle, str(root.get("path")))
        mounts = () if directory else wanted.mounts
        shared = [volume for volume in wanted.volumes if volume.way is Way.SHARE]
        shares = needs_share(mounts) + len(shared)
        if shares:
            _require_pci(wanted.settings)
            _require_ports(shares, shared)
        cache = ImageCache(self._state_dir / "images")
        owned.push_async_callback(cache.close)
        means = Means(
            cache=cache,
            scratch_dir=self._state_dir / "scratch",
            run_dir=self._run_dir,
            scratch_size=wanted.settings.scratch_mib * _MIB,
            cgroup=self._share_cgroup(wanted, owned) if shares else None,
        )
        prepared = await prepare_rootfs(
            mounts,
            wanted.container_id,
            means,
            directory=directory,
            readonly=bool(root.get("readonly")),
        )
        owned.push_async_callback(prepared.close)
        supply = LocalSupply(prepared.rootfs, {}, prepared.disks, list(prepared.shares), [], [])
        for volume in wanted.volumes:
            await self._volume(volume, wanted, supply, owned, means.cgroup)
        for share in supply.shares:
            self._resources.add_process(share.pid, "virtiofsd")
            owned.callback(self._resources.drop_process, share.pid)
        return supply

    def _share_cgroup(self, wanted: Wanted, owned: AsyncExitStack) -> Cgroup | None:
        """Return the cgroup for the container's virtiofsd processes, noted for ``delete``.

        It stands beside QEMU's, and is made by the first of them.
        """
        from shims.microvm.cgroup import machine_cgroup

        name = hashlib.sha256(wanted.bundle.encode()).hexdigest()[:16]
        path = (wanted.spec.get("linux") or {}).get("cgroupsPath")
        group = machine_cgroup(f"fs-{name}", path if isinstance(path, str) else None)
        if group is not None:
            for hierarchy in group.hierarchies:
                place = f"{hierarchy.mount}{group.path}"
                self._resources.add_cgroup(place)
                owned.callback(self._resources.drop, place)
        return group

    async def _volume(
        self, volume: Volume, wanted: Wanted, supply: LocalSupply, owned: AsyncExitStack,
        cgroup: Cgroup | None,
    ) -> None:  # fmt: skip
        from shims.guest.plan.model import GuestSource

        if volume.way is Way.SHARE:
            supply.sources[volume.index] = await self._share(volume, wanted, supply, owned, cgroup)
        elif volume.way is Way.GUEST:
            # Named after the host's path, so that all containers of the pod meet in it.
            name = hashlib.sha256(volume.source.encode()).hexdigest()[:16]
            path = f"{_GUEST_VOLUMES}/{name}"
            supply.directories.append(path)
            supply.sources[volume.index] = GuestSource(kind="pushed", name=path)
        else:
            path = f"{_GUEST_FILES}/{wanted.container_id}/{volume.index}/content"
            supply.pushes.append(_Push(volume.source, path, volume.is_file))
            supply.sources[volume.index] = GuestSource(kind="pushed", name=path)

    async def _share(
        self, volume: Volume, wanted: Wanted, supply: LocalSupply, owned: AsyncExitStack,
        cgroup: Cgroup | None,
    ) -> GuestSource:  # fmt: skip
        from shims.guest.plan.model import GuestSource
        from shims.microvm.virtiofs import start_share

        options = wanted.spec["mounts"][volume.index].get("options") or ()
        name = hashlib.sha256(wanted.container_id.encode()).hexdigest()[:16]
        share = await owned.enter_async_context(
            start_share(
                volume.source,
                f"v{volume.index}-{name}",
                run_dir=self._run_dir,
                options=_share_options(volume, options),
                cgroup=cgroup,
            )
        )
        supply.shares.append(share)
        return GuestSource(kind="share", name=share.tag, path=share.path, fstype="virtiofs")


async def _build_image(environ: Mapping[str, str]) -> None:
    """Build the guest image in a process of its own: it takes more memory than a shim should.

    Raises ``Conflict`` with the builder's reason, which says what to install.
    """
    main = os.path.join(os.path.dirname(os.path.abspath(__file__)), "main.py")
    builder = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", main, "guest-image",
        env=dict(environ), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_BUILD_TIMEOUT):
            _, words = await builder.communicate()
    except TimeoutError:
        raise DeadlineExceeded(f"no guest image after {_BUILD_TIMEOUT:.0f} s") from None
    finally:
        if builder.returncode is None:
            builder.kill()
    if builder.returncode:
        raise Conflict(words.decode(errors="replace").strip() or "the guest image was not built")


def _share_options(volume: Volume, options: Any) -> ShareOptions:
    from shims.microvm.virtiofs import ShareOptions

    return ShareOptions(
        readonly=volume.readonly,
        noexec="noexec" in options,
        recursive="rbind" in options,
    )
