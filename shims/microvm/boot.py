"""What every start needs, and the start that makes a template."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from shims.core.errors import NotFound, TargetError
from shims.core.paths import ensure_private_dir
from shims.guest.hello import wait_ready
from shims.microvm import accel
from shims.microvm.cgroup import builder_name, machine_cgroup
from shims.microvm.keeper import SEALS
from shims.microvm.launcher import Launcher
from shims.microvm.memory import create_memory
from shims.microvm.net import open_tap
from shims.microvm.plan import Boot, Fd, Hardware, Memory, Plan, render
from shims.microvm.qmp import Command
from shims.microvm.templates import Template, seal_template
from shims.microvm.uids import UserLease
from shims.microvm.vm import Vm, VmSetup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from shims.microvm.cgroup import Cgroup
    from shims.microvm.config import MachineConfig

__all__ = [
    "LOAD",
    "NEGOTIATE",
    "build_template",
    "find_program",
    "make_setup",
    "open_image",
    "undo_on_failure",
]

_SAVE_TIMEOUT = 30.0
NEGOTIATE = (
    Command("qmp_capabilities", {}),
    Command(
        "migrate-set-capabilities",
        {
            "capabilities": [
                # RAM stays in its memfd: the state is some 200 KB instead of all of it.
                {"capability": "x-ignore-shared", "state": True},
                {"capability": "events", "state": True},
            ]
        },
    ),
)
"""What every QEMU of ours is told first."""
LOAD = Command("migrate-incoming", {"uri": f"fd:{Fd.STATE:d}"})


def find_program(name: str, path: str | None = None) -> str:
    """Return the real path of ``name``, looked for on PATH. Raises ``NotFound``."""
    search = [""] if "/" in name else (path or os.environ.get("PATH", os.defpath)).split(":")
    for directory in search:
        candidate = os.path.join(directory, name)
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return os.path.realpath(candidate)
    raise NotFound(f"{name} is not installed", hint="apt-get install qemu-system-x86")


def make_setup(
    config: MachineConfig,
    stack: AsyncExitStack,
    plan: Plan,
    fds: Mapping[Fd, int],
    *,
    accelerator: str,
    cgroup: Cgroup | None,
    first_commands: tuple[Command, ...] = NEGOTIATE,
) -> VmSetup:
    """Take what a VM needs of the host, its directory and its user id, and give it to ``stack``.

    ``config.qemu`` must be a path by now.
    """
    directory = config.run_dir / "vm" / config.name
    ensure_private_dir(directory.parent)
    ensure_private_dir(directory)
    stack.callback(_remove_directory, directory)
    ids: tuple[int, int] | None = None
    if config.user is not None and os.geteuid() == 0:
        lease = UserLease.take(config.user, config.run_dir, config.name)
        stack.callback(lease.close)
        ids = (lease.uid, lease.uid)
    return VmSetup(
        plan=plan,
        qemu=config.qemu,
        directory=directory,
        fds=fds,
        cgroup=cgroup,
        ids=ids,
        groups=_groups(accelerator),
        oom_score_adj=config.oom_score_adj,
        first_commands=first_commands,
    )


def open_image(config: MachineConfig, stack: ExitStack) -> dict[Fd, int]:
    """Open kernel and initramfs, as files that QEMU's user can open again."""
    fds: dict[Fd, int] = {}
    for number, path in ((Fd.KERNEL, config.image.kernel), (Fd.INITRAMFS, config.image.initramfs)):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(
                f"cannot open the guest image: {path}: {error.strerror}", hint="void-guest build"
            ) from error
        stack.callback(os.close, fd)
        if (
            config.user is not None
            and os.geteuid() == 0
            and not os.fstat(fd).st_mode & stat.S_IROTH
        ):
            fd = _readable_copy(fd)
            stack.callback(os.close, fd)
        fds[number] = fd
    return fds


async def build_template(
    config: MachineConfig, key: str, hardware: Hardware, boot: Boot, timeout: float
) -> Template:
    """Boot a VM, save it, seal it. It never runs again, but as clones.

    The template's QEMU runs in a cgroup of its own below /void-shims: its memory outlives it and
    must not be charged to the first VM. The guest is saved waiting for its first hello, with the
    link open, so that a clone finds its port connected and needs no event to notice.
    """
    name = builder_name(config.name)
    group = machine_cgroup(name, None)
    async with AsyncExitStack() as stack:
        opened = stack.enter_context(ExitStack())
        memory = create_memory(hardware.ram_mib, "void-template")
        state = os.memfd_create("void-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        kept = stack.enter_context(ExitStack())
        kept.callback(os.close, memory)
        kept.callback(os.close, state)
        fds = {**open_image(config, opened), Fd.MEMORY: memory}
        if hardware.network:
            # The guest's driver settles on what a tap offers; each clone brings its own.
            fds[Fd.TAP] = await open_tap(None)
            opened.callback(os.close, fds[Fd.TAP])
        plan = render(hardware, Memory.SHARED, boot, name=name)
        setup = make_setup(config, stack, plan, fds, accelerator=hardware.accelerator, cgroup=group)
        if group is not None:
            group.create()
            stack.callback(group.remove)
        launcher = Launcher.fork(group)
        stack.callback(launcher.close)
        vm = await Vm.spawn(setup, launcher, stack)
        sock = await vm.connect_link()
        stack.callback(sock.close)
        await vm.until_answered(wait_ready(sock, timeout=timeout))
        await vm.save_state(state, _SAVE_TIMEOUT)
        await vm.finish()
        try:
            template = seal_template(key, memory, state)
        except OSError as error:
            raise TargetError(f"cannot seal the template: {error.strerror}") from error
        kept.pop_all()
    return template


@asynccontextmanager
async def undo_on_failure(outer: AsyncExitStack) -> AsyncIterator[AsyncExitStack]:
    """Yield a stack that joins ``outer`` on success and is undone on failure."""
    async with AsyncExitStack() as attempt:
        yield attempt
        outer.push_async_exit(attempt.pop_all())


def _groups(accelerator: str) -> tuple[int, ...]:
    """Return the groups that let an unprivileged QEMU open what it must: /dev/kvm."""
    if accelerator != "kvm":
        return ()
    try:
        return accel.device_groups() or ()
    except OSError:
        return ()  # QEMU will say so


def _remove_directory(directory: Path) -> None:
    """Remove a VM's directory, in which there is at most the link's socket."""
    try:
        for entry in os.listdir(directory):
            os.unlink(directory / entry)
        os.rmdir(directory)
    except FileNotFoundError:
        pass  # somebody cleaned up after us


def _readable_copy(fd: int) -> int:
    """Return a sealed memfd with the content of ``fd``; anybody who is handed it may open it."""
    copy = os.memfd_create("void-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    size = os.fstat(fd).st_size
    sent = 0
    while sent < size:
        sent += os.sendfile(copy, fd, sent, size - sent)
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)
    return copy
