"""The long-lived half of the shim: one process, one group, one VM, until the last container goes.

Time is short between ``start`` and containerd's first request, so the order here is part of the
design: the child that will be QEMU is forked before asyncio is imported, the VM begins to start
before the service is imported, and what only Create needs is imported when Create comes.

The process never outlives its purpose: without a container for a while, with its bundle gone, or
after SIGTERM it kills what is left, tells containerd, and ends.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from contextlib import AsyncExitStack

    from shims.containerd.shim.attach import LocalSupplies
    from shims.containerd.shim.config import Settings
    from shims.containerd.shim.early import GroupId
    from shims.containerd.shim.group import Group
    from shims.containerd.shim.invocation import Invocation
    from shims.containerd.shim.state import State
    from shims.containerd.shim.vm import Vm
    from shims.microvm.launcher import Launcher

__all__ = ["Launch", "group_settings", "lease_lost", "raise_oom_score", "serve"]

_TICK = 5.0
"""Seconds between two looks at the lease."""
_DRAIN = 2.0
"""Seconds in which the last answers may be sent."""
_FLUSH = 5.0
"""Seconds in which containerd may take the last events; the rest stays in the journal."""
_ABANDON = 15.0


def serve(call: Invocation, listener: socket.socket) -> int:
    """Serve ``listener`` until there is nothing left to do; return the exit status."""
    # 4 MB and 10 ms: asyncio does without TLS when there is none.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    from shims.containerd.shim.state import State

    if "shims.containerd.shim.nurse" not in sys.modules:  # which has it from the one it came from
        raise_oom_score()
    state = State(call.namespace, call.group or call.id, call.environ)
    early = Launch(call, state.directory)
    import asyncio

    try:
        asyncio.run(_serve(call, listener, early, state))
    finally:
        early.close()
    return 0


def raise_oom_score(path: str = "/proc/self/oom_score_adj") -> None:
    """Let the host's kernel end us before containerd, whose score we inherited, and no sooner."""
    try:
        with open(path, "r+") as file:
            score = int(file.read())
            file.seek(0)
            file.write(f"{min(score + 1, 1000)}\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"the OOM score stays: {error}\n")


class Launch:
    """What is done before anything else is imported: the list of what we hold on the host, and the
    child that will be QEMU, forked early so that joining its cgroup costs nobody any time.
    """

    def __init__(self, call: Invocation, directory: str) -> None:
        from shims.containerd.shim.attach import machine_name
        from shims.containerd.shim.resources import Resources
        from shims.core.paths import runtime_path
        from shims.microvm.cgroup import builder_name, machine_cgroups
        from shims.microvm.launcher import fork_launcher

        self.resources = Resources(directory)
        self.launcher: Launcher | None = None
        self.name = machine_name(call.namespace, call.group or call.id)
        self.cgroup = _cgroups_path(call.bundle)
        try:
            for group in machine_cgroups(self.name, self.cgroup):
                for hierarchy in group.hierarchies:
                    self.resources.add_cgroup(f"{hierarchy.mount}{group.path}")
            # Belongs to the engine, which removes it; noted in case that we are killed.
            for name in (self.name, builder_name(self.name)):
                self.resources.add_path(runtime_path("vm", name, environ=call.environ))
            self.launcher = fork_launcher(self.name, self.cgroup)
        except Exception as error:
            # Not the place to fail: Create or the machine's start meets it again, with a reader.
            sys.stderr.write(f"no early launcher: {error}\n")

    def take(self, name: str, cgroup: str | None) -> Launcher | None:
        """Hand the child over if it was forked for this VM; only once."""
        if (name, cgroup) != (self.name, self.cgroup):
            self.close()
        launcher, self.launcher = self.launcher, None
        return launcher

    def close(self) -> None:
        """End a child that nobody took."""
        launcher, self.launcher = self.launcher, None
        if launcher is not None:
            launcher.close()


def _cgroups_path(bundle: str) -> str | None:
    import json

    try:
        with open(f"{bundle}/config.json", "rb") as file:
            spec = json.load(file)
        path = (spec.get("linux") or {}).get("cgroupsPath")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # Create reads it again, and says what is wrong with it
    return path if isinstance(path, str) and path else None


async def _serve(call: Invocation, listener: socket.socket, early: Launch, state: State) -> None:
    import asyncio
    from contextlib import AsyncExitStack

    from shims.containerd.shim.attach import LocalSupplies
    from shims.containerd.shim.early import GroupId
    from shims.containerd.shim.vm import Vm

    identity = GroupId(call.namespace, state.group)
    supplies = LocalSupplies(call.environ, early)
    vm = Vm(supplies.start_machine, report=_complain)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(vm.stop, graceful=False)
        _begin_early(vm, identity, supplies, call.bundle, state)
        if "shims.containerd.shim.service" not in sys.modules:  # they came with the nursery
            # In a thread, so that the VM's start does not wait for what it does not need.
            await asyncio.to_thread(_import_the_rest)
        await _serve_group(call, listener, state, stack, (identity, supplies, vm))


def _complain(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # the log file, until the log proper is there


def _import_the_rest() -> None:
    import shims.containerd.shim.create
    import shims.containerd.shim.report
    import shims.containerd.shim.service
    import shims.guest.plan
    import shims.microvm.rootfs  # noqa: F401  all of them for their side effect: being there


async def _serve_group(
    call: Invocation,
    listener: socket.socket,
    state: State,
    stack: AsyncExitStack,
    parts: tuple[GroupId, LocalSupplies, Vm],
) -> None:
    from shims.containerd.shim.group import Group
    from shims.containerd.shim.report import Reports
    from shims.containerd.shim.state import log_path

    reports = await stack.enter_async_context(
        Reports(call, state.directory, log_path(call.namespace, state.group, call.environ))
    )
    identity, supplies, vm = parts
    group = Group(identity, reports, supplies, vm, group_settings(state))
    group.close_sockets = lambda: _unlink(call.socket)
    group.on_started = lambda: _look_after_others(group, call)
    reports.dump_on_signal(group.describe)
    try:
        await _run(group, call, listener)
    finally:
        await vm.stop(graceful=False)  # while the log and the list of resources are still open
        await reports.flush(_FLUSH)


def _begin_early(
    vm: Vm, identity: GroupId, supplies: LocalSupplies, bundle: str, state: State
) -> None:
    """Start the VM that the bundle will most likely want. Create reports what is wrong with it."""
    from google.protobuf import any_pb2

    from shims.containerd.shim.early import early_config

    try:
        options = any_pb2.Any.FromString(state.read_options())
        vm.begin(early_config(identity, supplies, bundle, options))
    except Exception as error:  # whatever it is: without us nobody could be told
        _complain(f"no early start: {type(error).__name__}: {error}")


def group_settings(state: State) -> Settings:
    """Return the bounds of the group: the host's settings and the options that came with start.

    Wrong ones are reported at Create, which reads them again.
    """
    from google.protobuf import any_pb2
    from google.protobuf.message import DecodeError

    from shims.containerd.shim.config import Settings
    from shims.containerd.shim.early import read_settings
    from shims.core.errors import ShimError

    try:
        return read_settings({}, any_pb2.Any.FromString(state.read_options()))
    except (ShimError, DecodeError):
        pass
    try:
        return read_settings({}, None)
    except ShimError:
        return Settings()


def _look_after_others(group: Group, call: Invocation) -> None:
    """Clean up after dead shims, and see to it that the next one is quicker than we were.

    Once per nursery is often enough.
    """
    group.on_started = lambda: None
    if "shims.containerd.shim.nurse" not in sys.modules:  # else it made us
        group.shared.spawn(_sweep_and_nurse(group, call), "sweep")


async def _sweep_and_nurse(group: Group, call: Invocation) -> None:
    """Not the place to fail."""
    import asyncio

    from shims.containerd.shim import nursery
    from shims.containerd.shim.sweep import sweep

    try:
        for line in await asyncio.to_thread(sweep, call):
            group.reporter.log(line)
    except (OSError, ValueError) as error:
        group.reporter.log(f"no sweep: {error}")
    try:
        nursery.begin(call.environ)
    except (OSError, ValueError) as error:
        group.reporter.log(f"no nursery: {error}")


async def _run(group: Group, call: Invocation, listener: socket.socket) -> None:
    import asyncio
    import signal

    from shims.containerd.shim.service import TaskService
    from shims.ttrpc.server import Server

    server = Server()
    TaskService(group).register(server)
    serving = asyncio.create_task(server.serve(listener), name="server")
    lease = asyncio.create_task(_keep_lease(group, call.bundle), name="lease")
    loop = asyncio.get_running_loop()
    seen: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, group, seen, signal.Signals(number).name)
    over = asyncio.create_task(group.over.wait())
    # The server never ends by itself: if it does, there is nobody left to talk to.
    await asyncio.wait({over, serving}, return_when=asyncio.FIRST_COMPLETED)
    lease.cancel()
    over.cancel()
    await server.drain(_DRAIN)
    await asyncio.gather(serving, lease, over, return_exceptions=True)


def _on_signal(group: Group, seen: list[str], name: str) -> None:
    """The first signal ends in order, the second at once.

    ``delete`` sends one while we may be ending anyhow: the last events still have to go out.
    """
    if seen:
        os._exit(1)
    seen.append(name)
    if not group.over.is_set() and not group.abandoning:
        group.shared.spawn(abandon(group, name), "abandon")


async def abandon(group: Group, reason: str) -> None:
    """Give up the group in bounded time."""
    import asyncio

    try:
        await asyncio.wait_for(group.abandon(reason), _ABANDON)
    except TimeoutError:
        group.reporter.log("giving up took too long")
    finally:
        group.over.set()


async def _keep_lease(group: Group, bundle: str) -> None:
    """End the shim when it has lost its purpose."""
    import asyncio

    while not group.over.is_set():
        try:
            await asyncio.wait_for(group.changed.wait(), _TICK)
        except TimeoutError:
            pass
        group.changed.clear()
        if reason := lease_lost(group, bundle, asyncio.get_running_loop().time()):
            await abandon(group, reason)


def lease_lost(group: Group, bundle: str, now: float) -> str:
    """Return why the shim has no purpose any more, or nothing.

    containerd moves a bundle away when it has deleted the task, or given up on it: a container
    whose bundle is gone belongs to nobody. ``now`` is the event loop's time.
    """
    for container in list(group.containers.values()):
        if container.init.deletion is None and not os.path.isdir(container.bundle):
            return f"the bundle of container {container.id} is gone"
    if not group.idle:
        return ""
    if not os.path.isdir(bundle):
        return "the bundle is gone"
    if now - group.last_activity > group.settings.create_timeout:
        return f"no container for {group.settings.create_timeout:g} s"
    return ""


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # gone already, or never there (tests hand in a socket without a name)
