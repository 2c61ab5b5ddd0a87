"""The Task service, v2 and v3: requests in, answers out; the work is done by others.

The two versions have the same messages under two names, so one set of handlers serves both.
What changes state runs to its end even when its client gives up (``_finish``); what reads answers
from the host's records. Source: containerd ``api/runtime/task/v3/shim.proto`` and the runc shim's
behaviour where the text is silent.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from google.protobuf import empty_pb2

from protos.gen.containerd.runc.v1 import options_pb2 as runc_options
from protos.gen.containerd.task.v3 import task_pb2 as task
from protos.gen.containerd.v1.types import task_pb2 as types
from shims.containerd.shim import anys
from shims.containerd.shim.killing import kill
from shims.containerd.shim.process import Phase, Process
from shims.core.errors import Conflict, InputError, NotSupported, ShimError
from shims.ttrpc.server import Method

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from shims.containerd.shim.container import Container
    from shims.containerd.shim.group import Group
    from shims.ttrpc.server import Context, Server

__all__ = ["SERVICES", "TaskService"]

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
_PIDS_TIMEOUT = 1.0
_STATS_TIMEOUT = 1.5
"""containerd's metrics give up after 2 s."""
_HIGHEST_SIGNAL = 64
_EMPTY = empty_pb2.Empty()


class TaskService:
    """Handlers of the Task service over one group."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def register(self, server: Server) -> None:
        """Serve both versions."""
        methods = {
            "State": Method.unary(self.state, task.StateRequest, task.StateResponse),
            "Create": Method.unary(self.create, task.CreateTaskRequest, task.CreateTaskResponse),
            "Start": Method.unary(self.start, task.StartRequest, task.StartResponse),
            "Delete": Method.unary(self.delete, task.DeleteRequest, task.DeleteResponse),
            "Pids": Method.unary(self.pids, task.PidsRequest, task.PidsResponse),
            "Pause": Method.unary(self.pause, task.PauseRequest, empty_pb2.Empty),
            "Resume": Method.unary(self.resume, task.ResumeRequest, empty_pb2.Empty),
            "Checkpoint": Method.unary(
                self.checkpoint, task.CheckpointTaskRequest, empty_pb2.Empty
            ),
            "Kill": Method.unary(self.kill, task.KillRequest, empty_pb2.Empty),
            "Exec": Method.unary(self.exec, task.ExecProcessRequest, empty_pb2.Empty),
            "ResizePty": Method.unary(self.resize_pty, task.ResizePtyRequest, empty_pb2.Empty),
            "CloseIO": Method.unary(self.close_io, task.CloseIORequest, empty_pb2.Empty),
            "Update": Method.unary(self.update, task.UpdateTaskRequest, empty_pb2.Empty),
            "Wait": Method.unary(self.wait, task.WaitRequest, task.WaitResponse),
            "Stats": Method.unary(self.stats, task.StatsRequest, task.StatsResponse),
            "Connect": Method.unary(self.connect, task.ConnectRequest, task.ConnectResponse),
            "Shutdown": Method.unary(self.shutdown, task.ShutdownRequest, empty_pb2.Empty),
        }
        for name in SERVICES:
            server.add_service(name, methods)

    # ---- answered from the host's records ------------------------------------------------------

    async def state(self, request: task.StateRequest, context: Context) -> task.StateResponse:
        """What a process is doing, as far as the host knows."""
        container = self._group.find(request.id)
        process = container.process(request.exec_id)
        response = task.StateResponse(
            id=request.id,
            bundle=container.bundle,
            pid=process.pid,
            status=_status(container, process),
            stdin=process.uris.stdin,
            stdout=process.uris.stdout,
            stderr=process.uris.stderr,
            terminal=process.uris.terminal,
            exec_id=request.exec_id,
        )
        if process.exit is not None:
            response.exit_status = process.exit.status
            response.exited_at.CopyFrom(anys.timestamp(process.exit.at_ns))
        return response

    async def wait(self, request: task.WaitRequest, context: Context) -> task.WaitResponse:
        """Answer when the process has ended and everything about its end is known."""
        ended = await self._group.find(request.id).process(request.exec_id).wait()
        return task.WaitResponse(exit_status=ended.status, exited_at=anys.timestamp(ended.at_ns))

    async def connect(self, request: task.ConnectRequest, context: Context) -> task.ConnectResponse:
        """A restarted containerd asks who is there; an id we do not know has no task."""
        container = self._group.containers.get(request.id)
        return task.ConnectResponse(
            shim_pid=os.getpid(), task_pid=container.init.pid if container else 0, version="3"
        )

    async def pids(self, request: task.PidsRequest, context: Context) -> task.PidsResponse:
        """The guest's processes by the guest's pids, or, from a silent guest, ours."""
        container = self._group.find(request.id)
        vm = self._group.vm
        response = task.PidsResponse()
        if vm.alive and container.init.may_signal:
            try:
                listed = await vm.ask(
                    "list processes",
                    lambda guest: guest.list_processes(request.id, timeout=_PIDS_TIMEOUT),
                )
                for info in listed:
                    _add_process(response, info.pid, info.exec_id)
            except ShimError as error:
                self._group.reporter.log(f"processes of {request.id}: {error}")
        for process in container.all_processes() if not response.processes else ():
            if process.may_signal and process.pid:
                _add_process(response, process.pid, process.exec_id)
        if not response.processes:
            # A containerd that comes back takes a shim without processes for a leftover and has
            # it deleted, exit code and all. A stopped task is no leftover until it is deleted.
            _add_process(response, container.init.pid, "")
        return response

    # ---- life ----------------------------------------------------------------------------------

    async def create(
        self, request: task.CreateTaskRequest, context: Context
    ) -> task.CreateTaskResponse:
        """Make a container, up to the moment before its program runs."""
        from shims.containerd.shim.create import create_container

        container = await self._finish(create_container(self._group, request), "create")
        return task.CreateTaskResponse(pid=container.init.pid)

    async def start(self, request: task.StartRequest, context: Context) -> task.StartResponse:
        """Let a created process run."""
        container = self._group.find(request.id)
        pid = await self._finish(container.start(request.exec_id), "start")
        asyncio.get_running_loop().call_soon(self._group.on_started)
        return task.StartResponse(pid=pid)

    async def exec(self, request: task.ExecProcessRequest, context: Context) -> empty_pb2.Empty:
        """Declare a process that Start will run in a container."""
        from shims.containerd.shim.create import create_exec

        container = self._group.find(request.id)
        await self._finish(create_exec(self._group, container, request), "exec")
        return _EMPTY

    async def delete(self, request: task.DeleteRequest, context: Context) -> task.DeleteResponse:
        """Forget a stopped process, or a stopped container with all that was made for it."""
        container = self._group.find(request.id)
        process = container.process(request.exec_id)
        ended = await self._finish(self._group.delete(container, request.exec_id), "delete")
        return task.DeleteResponse(
            pid=process.pid, exit_status=ended.status, exited_at=anys.timestamp(ended.at_ns)
        )

    async def shutdown(self, request: task.ShutdownRequest, context: Context) -> empty_pb2.Empty:
        """End the shim, unless it has containers: then nothing happens."""
        await self._finish(self._group.shut_down(), "shutdown")
        return _EMPTY

    # ---- control -------------------------------------------------------------------------------

    async def kill(self, request: task.KillRequest, context: Context) -> empty_pb2.Empty:
        """Send a signal to a process, or to everything in the container."""
        if not 1 <= request.signal <= _HIGHEST_SIGNAL:
            raise InputError("signal", request.signal, f"1 to {_HIGHEST_SIGNAL}")
        container = self._group.find(request.id)
        await kill(container, request.exec_id, request.signal, everything=request.all)
        return _EMPTY

    async def pause(self, request: task.PauseRequest, context: Context) -> empty_pb2.Empty:
        """Freeze a running container."""
        await self._finish(self._freeze(request.id, frozen=True), "pause")
        return _EMPTY

    async def resume(self, request: task.ResumeRequest, context: Context) -> empty_pb2.Empty:
        """Thaw a paused container."""
        await self._finish(self._freeze(request.id, frozen=False), "resume")
        return _EMPTY

    async def _freeze(self, container_id: str, *, frozen: bool) -> None:
        container = self._group.find(container_id)
        verb = "pause" if frozen else "resume"
        container.init.require(Phase.RUNNING, verb=verb)
        if container.paused == frozen:
            state = "is paused already" if frozen else "is not paused"
            raise Conflict(f"cannot {verb} container {container_id}: it {state}")
        timeout = self._group.settings.guest_timeout
        await self._group.vm.ask(
            f"{verb} container {container_id}",
            lambda guest: guest.freeze(container_id, frozen, timeout=timeout),
        )
        container.paused = frozen
        if frozen:
            container.announce.paused()
        else:
            container.announce.resumed()

    async def checkpoint(
        self, request: task.CheckpointTaskRequest, context: Context
    ) -> empty_pb2.Empty:
        """Not offered: a snapshot of one container would be one of the whole VM."""
        self._group.find(request.id)
        raise NotSupported("checkpoint: containers in microVMs cannot be checkpointed")

    async def resize_pty(self, request: task.ResizePtyRequest, context: Context) -> empty_pb2.Empty:
        """Set the size of a process's terminal; before its start the size is kept for it."""
        process = self._group.find(request.id).process(request.exec_id)
        if not process.uris.terminal:
            return _EMPTY  # as runc does: nobody looks at a size without a terminal
        process.plan.rows, process.plan.columns = request.height, request.width
        if process.known_to_guest and process.may_signal:
            timeout = self._group.settings.guest_timeout
            await self._group.vm.ask(
                "resize a terminal",
                lambda guest: guest.resize_terminal(
                    request.id, request.exec_id, request.height, request.width, timeout=timeout
                ),
            )
        return _EMPTY

    async def close_io(self, request: task.CloseIORequest, context: Context) -> empty_pb2.Empty:
        """End a process's input, behind what was written to it."""
        process = self._group.find(request.id).process(request.exec_id)
        if request.stdin and process.copies is not None:
            process.copies.end_input()
        return _EMPTY

    async def update(self, request: task.UpdateTaskRequest, context: Context) -> empty_pb2.Empty:
        """Change the limits of a container; answered when they hold."""
        from shims.containerd.shim.create import update_container

        container = self._group.find(request.id)
        await self._finish(update_container(self._group, container, request), "update")
        return _EMPTY

    async def stats(self, request: task.StatsRequest, context: Context) -> task.StatsResponse:
        """The container's cgroup statistics; the last ones that were seen, once it has stopped."""
        container = self._group.find(request.id)
        metrics = await container.sample_stats(timeout=_STATS_TIMEOUT)
        return task.StatsResponse(stats=anys.pack(metrics))

    async def _finish(self, work: Coroutine[Any, Any, Any], name: str) -> Any:
        """Carry ``work`` through even if the client's deadline or connection ends first."""
        job = asyncio.create_task(work, name=name)
        self._group.shared.tasks.add(job)
        job.add_done_callback(self._group.shared.tasks.discard)
        return await asyncio.shield(job)


def _status(container: Container, process: Process) -> types.Status:
    if process.phase is Phase.STOPPED:
        return types.STOPPED
    if process.phase is Phase.CREATED:
        return types.CREATED
    return types.PAUSED if container.paused else types.RUNNING


def _add_process(response: task.PidsResponse, pid: int, exec_id: str) -> None:
    info = response.processes.add(pid=pid)
    if exec_id:
        info.info.CopyFrom(anys.pack(runc_options.ProcessDetails(exec_id=exec_id)))
