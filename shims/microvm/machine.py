"""Start a microVM: a clone where possible, a copy where directories are shared, else a cold boot.

Everything a machine holds lies on one exit stack, in the order in which it was taken; leaving
``start_machine`` undoes it, also after a failure half-way.

Order of a clone's start, which is a race of milliseconds:

1. a child is forked, joins the VM's cgroup and waits (``process``);
2. the keeper hands out the template (``templates``);
3. sockets are made; the monitor's commands already lie in QEMU's socket, the guest link is
   connected, the preamble sent: all before QEMU exists;
4. the child becomes QEMU, loads the state, and runs without asking us again;
5. the guest answers the link; the hello sets its clock, entropy and identity.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from shims.core.paths import ensure_private_dir
from shims.microvm import accel
from shims.microvm.boot import (
    LOAD,
    NEGOTIATE,
    build_template,
    find_program,
    make_setup,
    open_image,
    undo_on_failure,
)
from shims.microvm.cgroup import machine_cgroup
from shims.microvm.config import ExitReason, MachineConfig, StartFailed
from shims.microvm.launcher import Launcher, fork_launcher
from shims.microvm.memory import copy_memory, create_memory
from shims.microvm.plan import Boot, Fd, Hardware, Memory, needs_tsc, render
from shims.microvm.running import Machine
from shims.microvm.templates import Template, acquire_template, drop_templates, template_key
from shims.microvm.tsc import host_tsc_khz
from shims.microvm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from protos.gen.voidbox.guest.v1 import guest_pb2
    from shims.microvm.cgroup import Cgroup
    from shims.microvm.config import Accelerator

__all__ = ["Machine", "fork_launcher", "start_machine"]

log = logging.getLogger("shims.microvm")

_COPY_TIMEOUT = 30.0
_CLONE_TIMEOUT = 20.0
"""For a clone's hello, which takes a twentieth of a second: what it takes on a host in distress."""
_WAITING_SHARE = 0.5
"""Part of the time left that may go by waiting for a template that somebody else builds."""
_GUEST_NEVER_CAME = (ExitReason.ERROR, ExitReason.BOOT_HANG, ExitReason.PANIC)
"""Ends of a start for which its template or its accelerator is to be suspected."""


@asynccontextmanager
async def start_machine(
    config: MachineConfig, *, launcher: Launcher | None = None
) -> AsyncIterator[Machine]:
    """Start a VM and yield it when its guest has said hello; end it on leaving.

    ``launcher``: a child forked earlier with ``fork_launcher`` (taken over). Raises ``StartFailed``
    with the VM's end, ``NotSupported`` for an accelerator that is not there, ``NotFound`` without
    QEMU, ``TargetError`` when the host refuses something.
    """
    async with AsyncExitStack() as stack:
        starter = _Starter(config, stack, launcher)
        yield await starter.start()


class _Starter:
    """The policy of one start: accelerator, template, what to try when something fails."""

    def __init__(
        self, config: MachineConfig, stack: AsyncExitStack, launcher: Launcher | None
    ) -> None:
        self._config = config
        self._stack = stack
        self._launcher = launcher
        self._began = time.monotonic()
        self._deadline = self._began + config.boot_timeout
        self._patience = config.boot_timeout
        """Seconds that one boot may take, from when it begins."""
        self._cgroup: Cgroup | None = None
        self._template_ready = 0.0
        self._network: guest_pb2.NetworkPlan | None = None

    async def start(self) -> Machine:
        self._take_launcher()
        config = self._config = replace(self._config, qemu=find_program(self._config.qemu))
        for directory in (config.state_dir, config.run_dir):
            ensure_private_dir(directory)
        await self._join_network()
        verdict = accel.choose(config.accelerator, accel.read_host_facts(config.state_dir))
        if not verdict.fall_back:
            return await self._start_with(verdict.accelerator, verdict.reason)
        self._patience = min(accel.KVM_WATCH_SECONDS, config.boot_timeout)
        try:
            return await self._start_with("kvm", verdict.reason)
        except StartFailed as failure:
            if failure.exit.reason not in _GUEST_NEVER_CAME:
                raise
            detail = failure.exit.detail
        reason = f"KVM failed on this host: {detail}"
        log.warning("%s; using TCG instead", reason)
        self._patience = config.boot_timeout
        self._deadline = max(self._deadline, time.monotonic() + config.boot_timeout / 2)
        machine = await self._start_with("tcg", reason)
        # Only now: a QEMU or a guest that is broken fails without KVM, too.
        accel.remember_failure(config.state_dir, detail)
        return machine

    async def _join_network(self) -> None:
        """Have a tap in the namespace whose network the VM is to carry; left after the VM's end."""
        if not self._config.netns:
            return
        from shims.microvm.network import join_network

        network = await self._stack.enter_async_context(join_network(self._config.netns))
        if network is not None:
            self._config = replace(self._config, tap=network.tap)
            self._network = network.plan

    def _left(self) -> float:
        """Seconds that a boot may take now; never so few that an attempt would be pointless."""
        left = min(self._deadline - time.monotonic(), self._patience)
        return max(1.0, round(left, 1))

    def _take_launcher(self) -> None:
        """Get the forked child, and see to it that it and its cgroup do not outlive us."""
        config = self._config
        if self._launcher is None:
            group = machine_cgroup(config.name, config.cgroup)
            if group is not None:
                self._stack.callback(group.remove)
            self._launcher = fork_launcher(config.name, config.cgroup)
        elif self._launcher.cgroup is not None:
            self._stack.callback(self._launcher.cgroup.remove)
        self._stack.callback(self._launcher.close)
        self._cgroup = self._launcher.cgroup
        # Only here: whoever forked a launcher early did not know the VM's size yet.
        if self._cgroup is not None and config.memory_limit is not None:
            self._cgroup.limit_memory(config.memory_limit)

    async def _start_with(self, accelerator: Accelerator, reason: str) -> Machine:
        config = self._config
        hardware = Hardware(
            machine=config.machine_type,
            accelerator=accelerator,
            vcpus=config.vcpus,
            ram_mib=config.ram_mib,
            network=config.tap is not None,
        )
        khz = host_tsc_khz(config.state_dir) if needs_tsc(hardware) else None
        boot = Boot(tsc_khz=khz, kernel_args=config.kernel_args)
        if config.template == "off":
            machine = await self._boot(hardware, boot)
        else:
            machine = await self._start_from_template(hardware, boot)
        machine.accelerator_reason = reason
        self._record_timings(machine)
        return machine

    async def _start_from_template(self, hardware: Hardware, boot: Boot) -> Machine:
        """Clone; a template that does not load is dropped and built again; then boot cold.

        One whose clone hangs is tried once more, and dropped after that.
        """
        config = self._config
        plain, hardware = hardware, replace(hardware, disk_slots=True)
        key = template_key(
            hardware,
            boot,
            qemu=config.qemu,
            image_digest=config.image.digest,
            trust_domain=config.trust_domain,
        )

        async def build() -> Template:
            return await build_template(config, key, hardware, boot, self._left())

        for last in (False, True):
            # What others do must leave us the time to do it ourselves.
            wait = self._left() * _WAITING_SHARE
            template = await acquire_template(key, config.run_dir, build, timeout=wait)
            try:
                self._template_ready = time.monotonic()
                return await self._clone(hardware, template)
            except StartFailed as failure:
                if failure.exit.reason not in _GUEST_NEVER_CAME:
                    raise
                log.warning("template %s does not start: %s", key, failure.exit)
                # A hang may be an overloaded host's: two are the template's.
                if last or failure.exit.reason is not ExitReason.BOOT_HANG:
                    await drop_templates(config.run_dir, key)
            finally:
                template.close()
        return await self._boot(plain, boot)

    async def _clone(self, hardware: Hardware, template: Template) -> Machine:
        config = self._config
        memory = Memory.SHARED if config.shares else Memory.PRIVATE
        plan = render(hardware, memory, None, name=config.name)
        async with undo_on_failure(self._stack) as attempt:
            with contextlib.ExitStack() as opened:
                ram = template.memory
                if config.shares:
                    ram = create_memory(hardware.ram_mib)
                    opened.callback(os.close, ram)
                state = template.open_state()
                opened.callback(os.close, state)
                setup = make_setup(
                    config,
                    attempt,
                    plan,
                    {Fd.MEMORY: ram, Fd.STATE: state, **self._tap()},
                    accelerator=hardware.accelerator,
                    cgroup=self._cgroup,
                    first_commands=NEGOTIATE if config.shares else (*NEGOTIATE, LOAD),
                )
                vm = await Vm.spawn(setup, self._use_launcher(), attempt)
                if config.shares:
                    # The copy fills the RAM while QEMU is still starting.
                    await copy_memory(template.memory, ram, self._cgroup, _COPY_TIMEOUT)
                    _ = vm.monitor.send(LOAD)
            machine = Machine(vm, config, "copy" if config.shares else "clone")
            await self._greet(machine, attempt, min(self._left(), _CLONE_TIMEOUT))
        return machine

    async def _boot(self, hardware: Hardware, boot: Boot) -> Machine:
        config = self._config
        memory = Memory.SHARED if config.shares else Memory.ANONYMOUS
        plan = render(hardware, memory, boot, name=config.name)
        async with undo_on_failure(self._stack) as attempt:
            with contextlib.ExitStack() as opened:
                fds = {**open_image(config, opened), **self._tap()}
                if config.shares:
                    fds[Fd.MEMORY] = create_memory(hardware.ram_mib)
                    opened.callback(os.close, fds[Fd.MEMORY])
                setup = make_setup(
                    config,
                    attempt,
                    plan,
                    fds,
                    accelerator=hardware.accelerator,
                    cgroup=self._cgroup,
                )
                vm = await Vm.spawn(setup, self._use_launcher(), attempt)
            machine = Machine(vm, config, "cold")
            await self._greet(machine, attempt, self._left())
        return machine

    async def _greet(self, machine: Machine, attempt: AsyncExitStack, timeout: float) -> None:
        attempt.push_async_callback(machine.disconnect)
        await machine.connect(timeout)
        if self._network is not None:
            await machine.link.configure_network(self._network, timeout=timeout)

    def _use_launcher(self) -> Launcher:
        """Return the forked child; a second attempt needs a second child."""
        launcher, self._launcher = self._launcher, None
        if launcher is None:
            launcher = Launcher.fork(self._cgroup)
            self._stack.callback(launcher.close)
        return launcher

    def _tap(self) -> dict[Fd, int]:
        return {} if self._config.tap is None else {Fd.TAP: self._config.tap}

    def _record_timings(self, machine: Machine) -> None:
        marks = {"template": self._template_ready, **machine.marks, "hello": time.monotonic()}
        machine.timings = {name: at - self._began for name, at in marks.items() if at}
