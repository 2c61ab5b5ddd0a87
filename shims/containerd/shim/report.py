"""What outlives the daemon, in one place: its log, its events, its exits."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from shims.containerd.shim.events import Publisher
from shims.containerd.shim.exits import Exit as JournaledExit
from shims.containerd.shim.exits import ExitJournal
from shims.containerd.shim.logs import DaemonLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from shims.containerd.shim.invocation import Invocation
    from shims.containerd.shim.process import Exit

__all__ = ["Reports"]

_log = logging.getLogger("shims.shim")


class Reports:
    """The daemon's reporter. ``async with Reports(...)``."""

    def __init__(self, call: Invocation, directory: str, log_path: str) -> None:
        self._call = call
        self._directory = directory
        self._log_path = log_path
        self._stack = AsyncExitStack()
        self._daemon_log: DaemonLog
        self._journal: ExitJournal
        self._publisher: Publisher

    async def __aenter__(self) -> Self:
        call = self._call
        async with AsyncExitStack() as stack:
            self._daemon_log = stack.enter_context(DaemonLog(self._log_path, debug=call.debug))
            self._daemon_log.add_fifo(f"{call.bundle}/log")
            self._journal = stack.enter_context(ExitJournal(self._directory))
            self._publisher = await stack.enter_async_context(
                Publisher(
                    self._directory,
                    call.namespace,
                    ttrpc_address=call.ttrpc_address,
                    publish_binary=call.publish_binary,
                    grpc_address=call.address,
                )
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def publish(self, topic: str, event: Message) -> None:
        """Queue an event behind those before it."""
        self._publisher.publish(topic, event)

    def record_exit(self, container: str, exec_id: str, pid: int, ended: Exit) -> None:
        """Write an exit to disk, so that ``delete`` knows it if we die now."""
        self._journal.record(JournaledExit(container, exec_id, pid, ended.status, ended.at_ns))

    def log(self, line: str) -> None:
        """Write a line to the log."""
        _log.info("%s", line)

    def dump_on_signal(self, describe: Callable[[], dict[str, Any]]) -> None:
        """Let SIGUSR1 write stacks and ``describe()`` to the log file."""
        loop = asyncio.get_running_loop()
        self._daemon_log.dump_on_signal(loop, lambda: json.dumps(describe(), indent=2))

    async def flush(self, timeout: float) -> None:
        """Give containerd a last chance to take the events."""
        if not await self._publisher.flush(timeout):
            _log.warning("%d events are left in the journal", self._publisher.pending)
