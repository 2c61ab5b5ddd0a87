"""What all containers of a group have in common, background work included."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from shims.containerd.shim.announce import Reporter
    from shims.containerd.shim.config import Settings
    from shims.containerd.shim.container import Container
    from shims.containerd.shim.vm import Vm

__all__ = ["Shared"]

T = TypeVar("T")


@dataclass(frozen=True)
class Shared:
    """What all containers of a group have in common."""

    vm: Vm
    reporter: Reporter
    settings: Settings
    on_stopped: Callable[[Container], None]
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run ``work`` to its end in the background; a failure is logged."""
        _ = self.track(work, name)

    def track(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Do the same for a caller that waits, as long as it does."""
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.reporter.log(f"{task.get_name()}: {type(error).__name__}: {error}")
