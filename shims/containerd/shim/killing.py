"""Signals to a container's processes, and the certainty that SIGKILL is.

What the guest does not carry out in time is carried out on the VM: a container that was told to die
dies, whatever its guest does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shims.core.errors import Conflict, NotFound, ShimError
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError

if TYPE_CHECKING:
    from shims.containerd.shim.container import Container

__all__ = ["SIGKILL", "kill", "kill_hard"]

SIGKILL = 9


async def kill(
    container: Container, exec_id: str, signal: int, *, everything: bool = False
) -> None:
    """Send a signal to one process, or to ``everything`` in the container.

    SIGKILL is carried out in the background, for certain. With an exec's id ``everything`` means
    nothing, as with runc: one exec is not the container. Raises ``NotFound`` and ``Conflict``.
    """
    shared = container.shared
    process = container.process(exec_id)
    everything = everything and not exec_id
    if not process.may_signal:
        raise NotFound(f"{process.name} has ended")
    if not process.known_to_guest:
        raise Conflict(f"cannot signal {process.name}: it was not started")
    if signal == SIGKILL:
        work = kill_hard(container, exec_id, everything=everything)
        shared.spawn(work, f"kill {process.name}")
        return
    timeout = shared.settings.guest_timeout
    await container.vm.ask(
        f"signal {process.name}",
        lambda guest: guest.signal_process(
            container.id, exec_id, signal=signal, everyone=everything, timeout=timeout
        ),
    )


async def kill_hard(container: Container, exec_id: str, *, everything: bool = False) -> None:
    """Have a process killed, by its guest or, when that does not happen, with its VM."""
    process = container.process(exec_id)
    bound = container.shared.settings.kill_timeout
    wedged = False
    try:
        await container.vm.ask(
            f"kill {process.name}",
            lambda guest: guest.signal_process(
                container.id, exec_id, signal=SIGKILL, everyone=everything, timeout=bound
            ),
        )
    except ShimError as error:
        gone = isinstance(error, RpcError) and error.code == Code.NOT_FOUND
        if exec_id:
            # Only the exec is lost; whether the guest answers at all, the VM finds out itself.
            container.log(f"kill {process.name}: {error}")
            return
        wedged = not gone
    if not wedged:
        try:
            await asyncio.wait_for(process.died.wait(), bound)
        except TimeoutError:
            # An exec may hang in the kernel while the guest is well; then only it is lost.
            wedged = not exec_id
    if wedged and not process.died.is_set():
        container.vm.condemn(f"{process.name} could not be killed within {bound:g} s")
        try:
            await asyncio.wait_for(process.died.wait(), bound)
        except TimeoutError:
            container.log(f"{process.name}: its VM does not go away")
