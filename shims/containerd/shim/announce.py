"""The events of containers, as containerd's topics and messages.

One method per event, so that the code which keeps their order reads as what it announces.
Source: containerd ``api/events/task.proto`` and ``core/runtime/events.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from protos.gen.containerd.events import task_pb2 as events
from shims.containerd.shim import anys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

    from protos.gen.containerd.types import mount_pb2
    from shims.containerd.shim.process import Exit, Process

__all__ = ["Announcer", "Reporter"]


class Reporter(Protocol):
    """Where facts go that must outlive the shim: events to containerd, exits to the journal."""

    def publish(self, topic: str, event: Message) -> None:
        """Queue an event behind those before it."""

    def record_exit(self, container: str, exec_id: str, pid: int, ended: Exit) -> None:
        """Write an exit to disk, so that ``delete`` knows it if we die now."""

    def log(self, line: str) -> None:
        """Write a line to the log."""


class Announcer:
    """Announces what happens to one container."""

    def __init__(self, reporter: Reporter, container_id: str) -> None:
        self._reporter = reporter
        self._id = container_id

    def created(
        self, bundle: str, rootfs: Sequence[mount_pb2.Mount], init: Process, pid: int
    ) -> None:
        """Create is about to answer."""
        uris = init.uris
        self._publish(
            "create",
            events.TaskCreate(
                container_id=self._id,
                bundle=bundle,
                rootfs=rootfs,
                io=events.TaskIO(
                    stdin=uris.stdin,
                    stdout=uris.stdout,
                    stderr=uris.stderr,
                    terminal=uris.terminal,
                ),
                pid=pid,
            ),
        )

    def exec_added(self, exec_id: str) -> None:
        """An exec was declared."""
        self._publish("exec-added", events.TaskExecAdded(container_id=self._id, exec_id=exec_id))

    def started(self, process: Process) -> None:
        """A process runs."""
        if process.exec_id:
            self._publish(
                "exec-started",
                events.TaskExecStarted(
                    container_id=self._id, exec_id=process.exec_id, pid=process.pid
                ),
            )
        else:
            self._publish("start", events.TaskStart(container_id=self._id, pid=process.pid))

    def exited(self, process: Process, ended: Exit) -> None:
        """A process has ended and its output is out.

        The exit of the first process is written to the journal before: ``delete`` asks for it when
        the shim has died. Nobody ever asks for an exec's, and the journal lies in memory (/run).
        """
        if not process.exec_id:
            try:
                self._reporter.record_exit(self._id, "", process.pid, ended)
            except OSError as error:  # /run is full: those who wait must know all the same
                self._reporter.log(f"exit of {process.name} is not in the journal: {error}")
        self._publish(
            "exit",
            events.TaskExit(
                container_id=self._id,
                id=process.exec_id or self._id,
                pid=process.pid,
                exit_status=ended.status,
                exited_at=anys.timestamp(ended.at_ns),
            ),
        )

    def deleted(self, init: Process, ended: Exit) -> None:
        """The container is gone."""
        self._publish(
            "delete",
            events.TaskDelete(
                container_id=self._id,
                pid=init.pid,
                exit_status=ended.status,
                exited_at=anys.timestamp(ended.at_ns),
            ),
        )

    def out_of_memory(self) -> None:
        """The kernel killed something of the container for its memory limit."""
        self._publish("oom", events.TaskOOM(container_id=self._id))

    def paused(self) -> None:
        """The container is frozen."""
        self._publish("paused", events.TaskPaused(container_id=self._id))

    def resumed(self) -> None:
        """The container is thawed."""
        self._publish("resumed", events.TaskResumed(container_id=self._id))

    def _publish(self, topic: str, event: Message) -> None:
        self._reporter.publish(f"/tasks/{topic}", event)
