"""A shim under test: the Task service on a unix socket, its client, and the streams of processes.

``start_fake_shim`` runs it over the fake guest. The same ``ShimUnderTest`` can stand on a real VM,
so that one suite judges both.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf import any_pb2, empty_pb2

from protos.gen.containerd.task.v3 import task_pb2 as task
from shims.containerd.shim.config import Settings
from shims.containerd.shim.early import GroupId
from shims.containerd.shim.group import Group
from shims.containerd.shim.network import network_path
from shims.containerd.shim.service import TaskService
from shims.containerd.shim.vm import Vm
from shims.guest.plan import GuestSource, Rootfs
from shims.ttrpc.client import Client
from shims.ttrpc.server import Server
from tests.fakes.machine import FakeConfig, FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from google.protobuf.message import Message

    from shims.containerd.shim.process import Exit
    from shims.containerd.shim.supplies import Wanted

DEADLINE = 10.0
SLOW = 60.0
"""For what a guest without KVM does on a busy host."""
_RESPONSES = {
    "State": task.StateResponse, "Create": task.CreateTaskResponse, "Start": task.StartResponse,
    "Delete": task.DeleteResponse, "Pids": task.PidsResponse, "Wait": task.WaitResponse,
    "Stats": task.StatsResponse, "Connect": task.ConnectResponse,
}  # fmt: skip
_REQUESTS = {
    "Create": task.CreateTaskRequest, "Exec": task.ExecProcessRequest,
    "Update": task.UpdateTaskRequest, "Checkpoint": task.CheckpointTaskRequest,
}  # fmt: skip

FAST = Settings(guest_timeout=0.3, kill_timeout=0.3, drain_timeout=0.3)
"""Bounds short enough that a test may run into them."""


NAMESPACES = ("pid", "mount", "ipc", "uts", "network")
"""Of every container, as ctr gives them."""


class Recorder:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.exits: list[tuple[str, str, int, Exit]] = []
        self.lines: list[str] = []

    def publish(self, topic: str, event: Message) -> None:
        self.events.append((topic.removeprefix("/tasks/"), event))

    def record_exit(self, container: str, exec_id: str, pid: int, ended: Exit) -> None:
        self.exits.append((container, exec_id, pid, ended))

    def log(self, line: str) -> None:
        self.lines.append(line)

    def topics(self) -> list[str]:
        """The topics in order, with the exec id where there is one."""
        names = []
        for topic, event in self.events:
            exec_id = getattr(event, "exec_id", "")
            if topic == "exit" and event.id != event.container_id:
                exec_id = event.id
            names.append(f"{topic} {exec_id}".strip())
        return names


@dataclass
class FakeSupply:
    """Nothing to prepare: processes run on this host's file system."""

    rootfs: Any
    sources: Mapping[int, Any] = field(default_factory=dict)
    needs_shares: bool = False
    needs_flush: bool = False
    fails_at_attach: Exception | None = None

    async def attach(self, vm: Any, owned: AsyncExitStack) -> None:
        if self.fails_at_attach:
            raise self.fails_at_attach


class FakeSupplies:
    """Hands out a ``FakeSupply``; ``undone`` counts what was given back."""

    def __init__(self) -> None:
        layer = GuestSource(kind="disk", name="e-0123456789abcdef", fstype="erofs")
        self.next = FakeSupply(Rootfs(layers=(layer,)))
        self.made = 0
        self.undone = 0

    async def prepare(self, wanted: Wanted, owned: AsyncExitStack) -> FakeSupply:
        self.made += 1
        owned.callback(self._undo)
        return self.next

    def _undo(self) -> None:
        self.undone += 1

    def machine_config(
        self, name: str, namespace: str, settings: Any, size: Any, spec: Any, *, shares: bool
    ) -> Any:
        netns = network_path(spec)
        return FakeConfig(f"{namespace}.{name}", size.memory_mib, shares, netns)


class Pipes:
    """The client's ends of a process's fifos."""

    def __init__(self, directory: Path, name: str, *, terminal: bool) -> None:
        self.terminal = terminal
        self.paths = {}
        self._fds: dict[str, int] = {}
        self.output = {"stdout": bytearray(), "stderr": bytearray()}
        self.came = asyncio.Event()
        self.ended = {"stdout": asyncio.Event(), "stderr": asyncio.Event()}
        for stream in ("stdin", "stdout") if terminal else ("stdin", "stdout", "stderr"):
            self.paths[stream] = str(directory / f"{name}-{stream}")
            os.mkfifo(self.paths[stream])

    def uris(self) -> dict[str, Any]:
        """Return the fields of Create and Exec."""
        return {**self.paths, "terminal": self.terminal}

    def read(self) -> None:
        """Begin to read both outputs."""
        for stream in self.output:
            if stream in self.paths:
                fd = os.open(self.paths[stream], os.O_RDONLY | os.O_NONBLOCK)
                self._fds[stream] = fd
                asyncio.get_running_loop().add_reader(fd, self._take, stream, fd)

    def _take(self, stream: str, fd: int) -> None:
        try:
            data = os.read(fd, 1 << 20)
        except BlockingIOError:
            return
        self.came.set()
        if data:
            self.output[stream] += data
        else:
            asyncio.get_running_loop().remove_reader(fd)
            self.ended[stream].set()

    async def write(self, data: bytes) -> None:
        """Write all of ``data`` to the process's input."""
        if "stdin" not in self._fds:
            self._fds["stdin"] = os.open(self.paths["stdin"], os.O_RDWR | os.O_NONBLOCK)
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fds["stdin"], view) :]
            except BlockingIOError:
                from shims.containerd.shim.stdio import wait_writable

                await wait_writable(self._fds["stdin"])

    async def all_of(self, stream: str) -> bytes:
        """Return everything, once the stream has ended."""
        await asyncio.wait_for(self.ended[stream].wait(), DEADLINE)
        return bytes(self.output[stream])

    async def wait_for(self, stream: str, text: bytes) -> None:
        """Wait until ``text`` came out."""
        async with asyncio.timeout(DEADLINE):
            while text not in self.output[stream]:
                self.came.clear()
                await self.came.wait()

    def close(self) -> None:
        """Close all ends."""
        for stream, fd in self._fds.items():
            if stream != "stdin":
                asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self._fds = {}


class ShimUnderTest:
    """One shim and its client. ``service`` chooses the version of the Task service."""

    def __init__(self, client: Client, directory: Path, recorder: Recorder) -> None:
        self.client = client
        self.directory = directory
        self.recorder = recorder
        self.service = "containerd.task.v3.Task"
        self.rootfs: list[Any] = []
        """Mounts of every container's root; a fake has none."""
        self.spec: dict[str, Any] = {}
        """Replaces parts of every container's configuration."""
        self._numbers = itertools.count()
        self._pipes: list[Pipes] = []

    async def call(self, method: str, *, timeout: float = DEADLINE, **fields: Any) -> Any:
        """Make one call."""
        request_type = _REQUESTS.get(method) or getattr(task, f"{method}Request")
        response_type = _RESPONSES.get(method, empty_pb2.Empty)
        return await self.client.unary(
            self.service, method, request_type(**fields), response_type, timeout=timeout
        )

    def pipes(self, *, terminal: bool = False, read: bool = True) -> Pipes:
        """Make fifos for one process."""
        pipes = Pipes(self.directory, f"p{next(self._numbers)}", terminal=terminal)
        if read:
            pipes.read()
        self._pipes.append(pipes)
        return pipes

    def bundle(self, name: str, *args: str, **changes: Any) -> Path:
        """Write a bundle whose process runs ``args`` in a shell's environment."""
        bundle = self.directory / name
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        terminal = changes.pop("terminal", False)
        spec = {
            "ociVersion": "1.0.2",
            "process": process_spec(*args, terminal=terminal),
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": kind} for kind in NAMESPACES]},
            **self.spec,
            **changes,
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    async def create(
        self, name: str, *args: str, pipes: Pipes | None = None, **changes: Any
    ) -> task.CreateTaskResponse:
        """Create a container that runs ``args``."""
        uris = pipes.uris() if pipes else {}
        if pipes and pipes.terminal:
            changes["terminal"] = True
        bundle = self.bundle(name, *args, **changes)
        response = await self.call(
            "Create", timeout=SLOW, id=name, bundle=str(bundle), rootfs=self.rootfs, **uris
        )
        assert isinstance(response, task.CreateTaskResponse)
        return response

    async def run(self, name: str, *args: str, pipes: Pipes | None = None, **changes: Any) -> None:
        """Create and start."""
        await self.create(name, *args, pipes=pipes, **changes)
        await self.call("Start", id=name)

    async def exec(self, name: str, exec_id: str, *args: str, pipes: Pipes | None = None) -> None:
        """Declare an exec."""
        terminal = bool(pipes and pipes.terminal)
        await self.call(
            "Exec", id=name, exec_id=exec_id, spec=process_any(*args, terminal=terminal),
            **(pipes.uris() if pipes else {}),
        )  # fmt: skip

    def close(self) -> None:
        """Close the client's ends of all streams."""
        for pipes in self._pipes:
            pipes.close()


@dataclass
class FakeShim:
    """A shim over the fake guest, and the strings to pull."""

    shim: ShimUnderTest
    group: Group
    engine: FakeEngine
    supplies: FakeSupplies
    socket: str

    @property
    def guest(self) -> Any:
        """The guest of the last machine."""
        return self.engine.last.link

    @property
    def recorder(self) -> Recorder:
        """What was reported."""
        return self.shim.recorder

    def call(self, method: str, **fields: Any) -> Any:
        """Make one call."""
        return self.shim.call(method, **fields)


@asynccontextmanager
async def start_fake_shim(
    directory: Path, *, group: str = "c", settings: Settings = FAST
) -> AsyncIterator[FakeShim]:
    """Serve a group over fake machines on a socket in ``directory``."""
    recorder, engine, supplies = Recorder(), FakeEngine(), FakeSupplies()
    vm = Vm(engine.start, report=recorder.log)
    served = Group(GroupId("tests", group), recorder, supplies, vm, settings)
    path = str(directory / "shim.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    server = Server()
    TaskService(served).register(server)
    serving = asyncio.create_task(server.serve(listener))
    client = await Client.connect(path)
    shim = ShimUnderTest(client, directory, recorder)
    try:
        yield FakeShim(shim, served, engine, supplies, path)
    finally:
        shim.close()
        await client.close()
        await served.vm.stop(graceful=False)
        server.close()
        await serving
        if served.shared.tasks:
            await asyncio.wait(served.shared.tasks, timeout=2)
        for job in list(served.shared.tasks):
            job.cancel()
        await asyncio.gather(*served.shared.tasks, return_exceptions=True)
        for container in served.containers.values():
            for process in container.all_processes():
                if process.copies is not None:
                    await process.copies.close()


def process_spec(*args: str, terminal: bool = False) -> dict[str, Any]:
    """Return an OCI process."""
    return {
        "args": list(args),
        "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
        "cwd": "/",
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
    }


def process_any(*args: str, terminal: bool = False) -> any_pb2.Any:
    """Return an OCI process as Exec carries it."""
    return any_pb2.Any(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/Process",
        value=json.dumps(process_spec(*args, terminal=terminal)).encode(),
    )
