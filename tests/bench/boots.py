"""The engine against raw QEMU: the same VM, started with as little as can start it.

Raw is one ``posix_spawn`` with the descriptors in their places, the monitor commands in one
write, and Hello over the guest link: no cgroup, no user of its own, no accelerator choice, no
keeper, no watching. Both clocks stop when void-init has answered Hello.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from shims.guest.hello import Hello
from shims.guest.image import find_guest_image
from shims.guest.link import GuestLink
from shims.microvm.boot import LOAD, NEGOTIATE, build_template, find_program
from shims.microvm.config import MachineConfig
from shims.microvm.machine import start_machine
from shims.microvm.plan import Boot, Fd, Hardware, Memory, Plan, render
from shims.microvm.tsc import host_tsc_khz
from tests.bench.table import Row

if TYPE_CHECKING:
    from pathlib import Path

    from shims.microvm.config import TemplateUse
    from shims.microvm.templates import Template
    from tests.bench.place import Place

__all__ = ["measure_boots"]

_COLD_REPEAT = 3
_CLONE_REPEAT = 9
_TIMEOUT = 60.0
_ABOVE = 64  # descriptors are moved here first, so that none is overwritten on the way
_CLONE_BUDGET = 1.3


def measure_boots(place: Place) -> list[Row]:
    """Compare cold boots and clones, in turns."""
    return asyncio.run(_measure(place))


async def _measure(place: Place) -> list[Row]:
    image = find_guest_image(state=place.void_state)
    khz = host_tsc_khz(place.void_state)
    hardware = Hardware("microvm", "tcg", 1, 2048)
    boot = Boot(tsc_khz=khz)
    config = _config(place, "bench-template", "off")
    cold: tuple[list[float], list[float]] = ([], [])
    for number in range(_COLD_REPEAT):
        cold[0].append(await _ours(_config(place, f"bench-cold-{number}", "off")))
        with ExitStack() as stack:
            fds = {
                Fd.KERNEL: os.open(image.kernel, os.O_RDONLY),
                Fd.INITRAMFS: os.open(image.initramfs, os.O_RDONLY),
            }
            for fd in fds.values():
                stack.callback(os.close, fd)
            cold[1].append(
                await _raw(place.daemon.root, render(hardware, Memory.ANONYMOUS, boot), fds)
            )
    template = await build_template(config, "bench", hardware, boot, _TIMEOUT)
    clone: tuple[list[float], list[float]] = ([], [])
    await _ours(_config(place, "bench-warm-up", "shared"))
    for number in range(_CLONE_REPEAT):
        clone[0].append(await _ours(_config(place, f"bench-clone-{number}", "shared")))
        clone[1].append(await _raw_clone(place.daemon.root, hardware, template))
    template.close()
    rows = []
    for name, (ours, peer), limit in (
        ("cold boot to hello", cold, None),
        ("clone to hello", clone, _CLONE_BUDGET),
    ):
        rows.append(Row(name, statistics.median(ours), "s", statistics.median(peer), limit=limit))
    return rows


def _config(place: Place, name: str, template: TemplateUse) -> MachineConfig:
    return MachineConfig(
        image=find_guest_image(state=place.void_state),
        name=name,
        state_dir=place.void_state,
        run_dir=place.void_run,
        accelerator="tcg",
        template=template,
        boot_timeout=_TIMEOUT,
    )


async def _ours(config: MachineConfig) -> float:
    begin = time.perf_counter()
    async with start_machine(config):
        return time.perf_counter() - begin


async def _raw_clone(directory: Path, hardware: Hardware, template: Template) -> float:
    state = template.open_state()
    try:
        plan = render(hardware, Memory.PRIVATE, None)
        return await _raw(directory, plan, {Fd.MEMORY: template.memory, Fd.STATE: state}, load=True)
    finally:
        os.close(state)


async def _raw(directory: Path, plan: Plan, fds: dict[Fd, int], *, load: bool = False) -> float:
    """Start QEMU, say hello, kill QEMU; return the seconds to the answer."""
    qemu = find_program("qemu-system-x86_64")
    path = str(directory / "raw.sock")
    with ExitStack() as stack:
        begin = time.perf_counter()
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        stack.callback(os.unlink, path)
        listener.listen(1)
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        _, serial = (stack.enter_context(end) for end in socket.socketpair())
        given = {
            **fds,
            Fd.QMP: theirs.fileno(),
            Fd.LINK: listener.fileno(),
            Fd.CONSOLE: serial.fileno(),
        }
        pid = _spawn(qemu, plan, given)
        try:
            commands = [*NEGOTIATE, LOAD] if load else [*NEGOTIATE]
            for command in commands:
                text = json.dumps({"execute": command.name, "arguments": command.arguments})
                ours.sendall(text.encode() + b"\n")
            end = stack.enter_context(socket.socket(socket.AF_UNIX))
            end.connect(path)
            link = await GuestLink.connect(end, Hello(), timeout=_TIMEOUT)
            took = time.perf_counter() - begin
            await link.close()
            return took
        finally:
            _end(pid)


def _spawn(qemu: str, plan: Plan, fds: dict[Fd, int]) -> int:
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for number, fd in fds.items()}
    try:
        actions = [(os.POSIX_SPAWN_DUP2, fd, int(number)) for number, fd in moved.items()]
        return os.posix_spawn(qemu, [qemu, *plan.arguments], os.environ, file_actions=actions)
    finally:
        for fd in moved.values():
            os.close(fd)


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
