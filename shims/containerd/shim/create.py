"""Create, Exec and Update: from containerd's request to something the guest can carry out.

Everything that can be refused is refused before the VM is asked for anything, and a failure
half-way undoes every step: each step leaves what undoes it on one exit stack, which the finished
container inherits.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from shims.containerd.shim import anys
from shims.containerd.shim.container import Container
from shims.containerd.shim.copying import Copies
from shims.containerd.shim.early import (
    machine_config,
    read_settings,
    read_spec,
    refuse_host_network,
)
from shims.containerd.shim.network import network_of
from shims.containerd.shim.process import Phase, Process, StdioUris
from shims.containerd.shim.stdio import open_endpoints
from shims.containerd.shim.supplies import Wanted
from shims.containerd.shim.volumes import classify_mounts
from shims.core.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InputError,
    NotFound,
    NotSupported,
    ShimError,
)
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from protos.gen.containerd.task.v3 import task_pb2 as task
    from protos.gen.voidbox.guest.v1 import guest_pb2
    from shims.containerd.shim.config import Settings
    from shims.containerd.shim.group import Group
    from shims.containerd.shim.supplies import Supply
    from shims.microvm.config import MachineConfig

__all__ = ["create_container", "create_exec", "update_container"]

_MIB = 1 << 20
_GUEST_TIMEOUT = 60.0
"""The guest's share of Create: it waits for disks and assembles the root file system."""
_CREATE_TIMEOUT = 110.0
"""Seconds for all of Create; kubelet gives up after two minutes. A longer boot may be asked for."""


async def create_container(group: Group, request: task.CreateTaskRequest) -> Container:
    """Make a container and return it, created but not started."""
    if request.checkpoint or request.parent_checkpoint:
        raise NotSupported("checkpoint: containers in microVMs cannot be restored from one")
    if not request.id or "/" in request.id:
        raise InputError("id", request.id, "a name without a slash")
    group.reserve(request.id)
    try:
        spec = read_spec(request.bundle)
        refuse_host_network(spec)
        settings = read_settings(spec, request.options if request.HasField("options") else None)
        async with _bounded(settings), AsyncExitStack() as owned:
            return await _create(group, request, spec, settings, owned)
    except NotFound as error:
        # containerd takes "not found" for the task's own absence, whatever is not there.
        raise Conflict(error.message, hint=error.hint) from error
    except RpcError as error:
        if error.code != Code.NOT_FOUND:
            raise
        raise Conflict(error.message, hint=error.hint) from error
    finally:
        group.release(request.id)


def _bound(settings: Settings) -> float:
    return max(_CREATE_TIMEOUT, settings.boot_timeout)


@asynccontextmanager
async def _bounded(settings: Settings) -> AsyncIterator[None]:
    """Give all steps of Create together a deadline."""
    bound = _bound(settings)
    try:
        async with asyncio.timeout(bound):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"the container was not created within {bound:g} s") from error


async def _create(
    group: Group,
    request: task.CreateTaskRequest,
    spec: Mapping[str, Any],
    settings: Settings,
    owned: AsyncExitStack,
) -> Container:
    volumes = classify_mounts(spec, request.bundle)
    wanted = Wanted(request.id, request.bundle, spec, request.rootfs, volumes, settings)
    supply = await group.supplies.prepare(wanted, owned)
    config = machine_config(
        group.identity, group.supplies, spec, settings, shares=supply.needs_shares
    )
    plan = _compile(group, request.id, spec, supply, config)
    uris = StdioUris(request.stdin, request.stdout, request.stderr, request.terminal)
    init = Process(request.id, "", uris, plan.process)
    await _open_streams(group, init, owned)

    # From here on the VM is asked.
    await group.require_vm(config, request.id)
    await group.vm.ready()
    await supply.attach(group.vm, owned)
    _rename_disks(plan, group.vm.guest_serials)
    container = Container(
        group.shared, init, bundle=request.bundle, spec=spec, needs_flush=supply.needs_flush
    )
    async with init.starting:  # no exit is told before the create event
        init.guest_pid = await _create_in_guest(group, plan, request.id)
        init.known_to_guest = True
        init.pid = group.vm.pid
        container.adopt(owned)
        group.add(container)
        container.announce.created(request.bundle, request.rootfs, init, init.pid)
    _tell_left_out(group, request.id, spec)
    return container


async def _create_in_guest(group: Group, plan: guest_pb2.LaunchPlan, container_id: str) -> int:
    """Return the guest's pid of the new container."""
    try:
        return await group.vm.ask(
            f"create container {container_id}",
            lambda guest: guest.create_container(plan, timeout=_GUEST_TIMEOUT),
        )
    except (DeadlineExceeded, asyncio.CancelledError):
        # It may be there, or come yet; nobody else would ever take it away.
        group.shared.spawn(_forget_in_guest(group, container_id), f"forget {container_id}")
        raise


async def _forget_in_guest(group: Group, container_id: str) -> None:
    timeout = group.settings.guest_timeout
    try:
        await group.vm.ask(
            f"delete container {container_id}",
            lambda guest: guest.delete_process(container_id, "", timeout=timeout),
        )
    except ShimError as error:
        group.reporter.log(f"delete container {container_id} in the guest: {error}")


def _rename_disks(plan: guest_pb2.LaunchPlan, serials: Mapping[str, str]) -> None:
    """Call each disk by the serial that it got when it was attached: that of a slot, mostly."""
    for step in plan.steps:
        if step.HasField("mount") and step.mount.source_kind == step.mount.SOURCE_DISK:
            serial = step.mount.source.decode()
            step.mount.source = serials.get(serial, serial).encode()


def _tell_left_out(group: Group, container_id: str, spec: Mapping[str, Any]) -> None:
    """Write to the log what of the configuration has no effect in a VM, and why."""
    from shims.guest.plan import review

    for finding in review(spec):
        group.reporter.log(f"container {container_id}: {finding.field}: {finding.reason}")


def _compile(
    group: Group,
    container_id: str,
    spec: Mapping[str, Any],
    supply: Supply,
    config: MachineConfig,
) -> guest_pb2.LaunchPlan:
    from shims.guest.plan import compile_plan

    joins = _joins(group, spec)
    current = (group.vm.config if group.containers else None) or config
    return compile_plan(
        _with_memory_limit(spec, current.memory_mib),
        container_id=container_id,
        rootfs=supply.rootfs,
        sources=supply.sources,
        network=network_of(spec, current.netns, joins),
        joins=joins,
    )


def _joins(group: Group, spec: Mapping[str, Any]) -> dict[str, str]:
    """Return which namespaces of the spec are those of the group's sandbox.

    We report QEMU's pid for the sandbox, so that is the process whose namespaces a member asks for
    (``/proc/PID/ns/ipc``); inside the VM they are the sandbox container's.
    """
    if not group.containers:
        return {}
    prefix = f"/proc/{group.vm.pid}/ns/"
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    paths = [str(namespace.get("path") or "") for namespace in namespaces]
    return {path: group.identity.name for path in paths if path.startswith(prefix)}


def _with_memory_limit(spec: Mapping[str, Any], memory_mib: int) -> Mapping[str, Any]:
    """Return ``spec`` with a memory limit that the VM can hold.

    Then the kernel's verdict on a container that wants more falls inside the container, with an
    event and exit code 137, and not on whatever else runs in the VM, or on the VM.
    """
    linux = spec.get("linux") or {}
    resources = linux.get("resources") or {}
    memory = _cap_memory(resources.get("memory") or {}, memory_mib)
    return {**spec, "linux": {**linux, "resources": {**resources, "memory": memory}}}


def _cap_memory(memory: Mapping[str, Any], memory_mib: int) -> dict[str, Any]:
    """Return the memory part of resources: no limit, or one above the VM's size, is its size."""
    most = memory_mib * _MIB
    limit = memory.get("limit", 0)
    if limit in (None, 0, -1) or (isinstance(limit, int) and limit > most):
        return {**memory, "limit": most}
    return dict(memory)  # what is no number is refused by the compiler, with its name


async def _open_streams(group: Group, process: Process, owned: AsyncExitStack) -> None:
    """Open the process's streams on the host, and tell its plan which ones there are."""
    uris = process.uris
    ends = await open_endpoints(uris, process.container_id, group.identity.namespace)
    owned.push_async_callback(ends.close)
    plan = process.plan
    plan.terminal = uris.terminal
    plan.stdin = ends.stdin is not None
    plan.stdout = ends.stdout is not None
    plan.stderr = ends.stderr is not None
    process.copies = Copies(
        group.vm,
        process.container_id,
        process.exec_id,
        ends,
        terminal=uris.terminal,
        report=group.reporter.log,
    )


async def create_exec(group: Group, container: Container, request: task.ExecProcessRequest) -> None:
    """Declare an exec. The guest hears of it when it is started."""
    if not request.exec_id or "/" in request.exec_id:
        raise InputError("exec_id", request.exec_id, "a name without a slash")
    if request.exec_id in container.execs:
        raise AlreadyExists(f"exec {request.exec_id} exists in container {container.id}")
    container.require_alive("exec")
    from shims.guest.plan import compile_process

    process_spec = anys.json_of(request.spec, "spec", "Process")
    uris = StdioUris(request.stdin, request.stdout, request.stderr, request.terminal)
    plan = compile_process(process_spec, spec=container.spec)
    process = Process(container.id, request.exec_id, uris, plan)
    async with AsyncExitStack() as owned:
        await _open_streams(group, process, owned)
        container.add_exec(process)
        owned.pop_all()


async def update_container(
    group: Group, container: Container, request: task.UpdateTaskRequest
) -> None:
    """Apply new limits inside the guest. A limit that the VM cannot grow to is refused."""
    from shims.guest.plan import compile_update

    # Also before the start and while paused, as runc does: kubelet's CPU manager does the first.
    container.init.require(Phase.CREATED, Phase.RUNNING, verb="update")
    resources = anys.json_of(request.resources, "resources", "LinuxResources")
    config = group.vm.config
    memory = resources.get("memory") or {}
    limit = memory.get("limit")
    if isinstance(limit, int) and config is not None:
        if limit > config.memory_mib * _MIB:
            raise InputError(
                "memory.limit", limit, f"at most the VM's {config.memory_mib} MiB",
                hint="start the container with dev.void-box.vm.memory as large as it may become",
            )  # fmt: skip
        resources = {**resources, "memory": _cap_memory(memory, config.memory_mib)}
    writes = compile_update(resources)
    timeout = group.settings.guest_timeout
    await group.vm.ask(
        f"update container {container.id}",
        lambda guest: guest.update_cgroup(container.id, writes, timeout=timeout),
    )
