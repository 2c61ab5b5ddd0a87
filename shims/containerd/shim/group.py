"""A sandbox group: the containers of one shim, and the VM they share.

A container started by itself is a group of one, whose VM may go as soon as the container has
stopped. In a pod (the group's id is another's) the VM lives until the last container is deleted.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from shims.containerd.shim.process import Phase
from shims.containerd.shim.shared import Shared
from shims.core.errors import AlreadyExists, Conflict, NotFound, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from protos.gen.voidbox.guest.v1 import guest_pb2
    from shims.containerd.shim.announce import Reporter
    from shims.containerd.shim.config import Settings
    from shims.containerd.shim.container import Container
    from shims.containerd.shim.early import GroupId
    from shims.containerd.shim.process import Exit
    from shims.containerd.shim.supplies import Supplies
    from shims.containerd.shim.vm import Vm, VmDeath
    from shims.microvm.config import MachineConfig

__all__ = ["Group"]

_SAMPLE_TIMEOUT = 5.0


class Group:
    """All containers of one shim process. Its methods are what the Task service needs."""

    def __init__(
        self,
        identity: GroupId,
        reporter: Reporter,
        supplies: Supplies,
        vm: Vm,
        settings: Settings,
    ) -> None:
        self.identity = identity
        self.reporter = reporter
        self.supplies = supplies
        self.settings = settings
        self.vm = vm
        vm.guest_timeout = settings.guest_timeout
        vm.on_event, vm.on_death, vm.report = self._on_event, self._on_death, reporter.log
        vm.on_beat = self._on_beat
        self.shared = Shared(self.vm, reporter, settings, self._on_stopped)
        self.containers: dict[str, Container] = {}
        self.creating: set[str] = set()
        self._early_exits: dict[str, int] = {}
        self.changed = asyncio.Event()
        """Set whenever a container came or went; the lease looks at it."""
        self.last_activity = time.monotonic()
        self.close_sockets: Callable[[], None] = lambda: None
        self.on_started: Callable[[], None] = lambda: None
        """Called when a process was started: nobody waits for us just then."""
        self.abandoning = False
        self.over = asyncio.Event()
        """Set when the shim has nothing left to do."""

    # ---- containers ----------------------------------------------------------------------------

    def find(self, container_id: str) -> Container:
        """Return a container. Raises ``NotFound``."""
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFound(f"no container {container_id}") from None

    def reserve(self, container_id: str) -> None:
        """Claim an id for a container in the making. Raises ``AlreadyExists``."""
        if container_id in self.containers or container_id in self.creating:
            raise AlreadyExists(f"container {container_id} exists")
        self._require_future()
        self.creating.add(container_id)
        self._note_change()

    def _require_future(self) -> None:
        if self.abandoning or self.over.is_set():
            raise Unreachable("this shim is shutting down")

    def release(self, container_id: str) -> None:
        """Give a claimed id back, whether its container was made or not."""
        self.creating.discard(container_id)
        self._early_exits.pop(container_id, None)
        self._note_change()

    def add(self, container: Container) -> None:
        """Take in a container that was made, and what happened to it in the meantime."""
        self.containers[container.id] = container
        if (status := self._early_exits.pop(container.id, None)) is not None:
            container.note_exit("", status)
        if self.vm.death is not None:
            container.note_death(self.vm.death)

    async def delete(self, container: Container, exec_id: str) -> Exit:
        """Delete a process, and with the first one the container."""
        ended = await container.delete(exec_id)
        if not exec_id:
            self.remove(container.id)
        return ended

    def remove(self, container_id: str) -> None:
        """Forget a deleted container."""
        self.containers.pop(container_id, None)
        self._note_change()

    @property
    def idle(self) -> bool:
        """Whether there is no container, nor one in the making."""
        return not self.containers and not self.creating

    def _note_change(self) -> None:
        self.last_activity = time.monotonic()
        self.changed.set()

    def is_alone(self, container_id: str) -> bool:
        """Whether the container is the group, so that the VM has no use without it."""
        return container_id == self.identity.name and set(self.containers) <= {container_id}

    # ---- the VM --------------------------------------------------------------------------------

    async def require_vm(self, config: MachineConfig, container_id: str) -> None:
        """See to it that the VM is there, or being started, and can do what ``config`` asks.

        A VM that was started early with another configuration is replaced, as long as no container
        is in it; after that only the lack of shares is an error.
        """
        self._require_future()
        current = self.vm.config
        if current is None or self.vm.death is not None:
            if self.containers:
                raise Unreachable(f"the VM of this group is gone: {_reason(self.vm.death)}")
            self.vm.begin(config)
        elif current != config and not self.containers and self.creating <= {container_id}:
            self.reporter.log("the VM that was started early does not fit: starting another")
            await self.vm.stop(graceful=False)
            self._require_future()
            self.vm.begin(config)
        elif config.shares and not current.shares:
            raise Conflict(
                "the VM of this group was started without shared directories",
                hint="let the first container of the group mount one",
            )

    def _on_event(self, event: guest_pb2.Event) -> None:
        kind = event.WhichOneof("kind")
        if kind == "exited":
            exited = event.exited
            if container := self.containers.get(exited.container_id):
                container.note_exit(exited.exec_id, exited.exit_status)
            elif exited.container_id in self.creating and not exited.exec_id:
                self._early_exits[exited.container_id] = exited.exit_status
        elif kind == "oom" and (container := self.containers.get(event.oom.container_id)):
            container.note_oom()

    def _on_death(self, death: VmDeath) -> None:
        for container in list(self.containers.values()):
            container.note_death(death)

    async def _on_beat(self) -> None:
        """Look at the statistics now and then, so that there are some if the VM is killed."""
        for container in list(self.containers.values()):
            if container.init.phase is Phase.RUNNING:
                await container.sample_stats(timeout=_SAMPLE_TIMEOUT)

    def _on_stopped(self, container: Container) -> None:
        """The container's first process has ended. A VM without purpose gives its memory back."""
        if self.is_alone(container.id):
            self.shared.spawn(self._release_vm(container), "stop the VM")

    async def _release_vm(self, container: Container) -> None:
        await container.settle_late()
        if self.is_alone(container.id) and self.creating <= {container.id}:
            await self.vm.stop(graceful=container.needs_flush)

    # ---- the end -------------------------------------------------------------------------------

    async def shut_down(self) -> bool:
        """Stop everything if no container is left; say whether that was so.

        When it returns, the VM is gone and the sockets are unlinked: a new shim of the same name
        may start.
        """
        if not self.idle:
            return False
        self.over.set()
        await self.vm.stop(graceful=False)
        self._unlink_sockets()
        return True

    async def abandon(self, reason: str) -> None:
        """End with containers still there: they are killed, told about, and deleted."""
        self.abandoning = True
        self._unlink_sockets()  # first of all: nobody may hand us a new container any more
        self.reporter.log(f"giving up: {reason}")
        self.vm.condemn(reason)
        await self.vm.stop(graceful=False)
        for container in list(self.containers.values()):
            await container.init.wait()
            await self.delete(container, "")
        self.over.set()

    def _unlink_sockets(self) -> None:
        """Only once: the next time the socket of our name may be our successor's."""
        close, self.close_sockets = self.close_sockets, lambda: None
        close()

    def describe(self) -> dict[str, Any]:
        """Return what a dump to the log should say about us."""
        return {
            "group": f"{self.identity.namespace}/{self.identity.name}",
            "vm": {"pid": self.vm.pid, "alive": self.vm.alive, "death": _reason(self.vm.death)},
            "creating": sorted(self.creating),
            "containers": {
                container.id: {
                    process.exec_id or "init": f"{process.phase.value} {process.exit or ''}".strip()
                    for process in container.all_processes()
                }
                for container in self.containers.values()
            },
        }


def _reason(death: VmDeath | None) -> str:
    return death.reason if death else ""
