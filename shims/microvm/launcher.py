"""Starting QEMU: a child that prepares its own confinement while we are still deciding.

Joining a cgroup costs some 15 ms on most kernels (the kernel waits for an RCU grace period), which
is a third of a clone's start. So the child is forked first; it joins the cgroup and enters an empty
network namespace by itself, and only then waits for its order: what to run, as whom, with which
descriptors. A caller that knows the cgroup early forks early and pays nothing.

Between fork and exec the child is single-threaded Python that touches no event loop. It dies with
its parent: first by end of file on the order socket, after exec by PDEATHSIG, which is set last
because a change of ids clears it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from shims.core.errors import TargetError
from shims.microvm.cgroup import Cgroup, machine_cgroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from shims.microvm.process import Process

__all__ = ["LaunchFailed", "Launcher", "Order", "fork_launcher", "fork_task", "process_control"]

_FIRST_FD = 3
_MOST_FDS = 32
_ORDER_LIMIT = 64 * 1024
_CLONE_NEWIPC, _CLONE_NEWNET = 0x08000000, 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_LAUNCH_FAILED = 127


class LaunchFailed(TargetError):
    """The program could not be started: the step that failed, and its errno's text."""


@dataclass(frozen=True)
class Order:
    """What the forked child shall become."""

    argv: tuple[str, ...]
    ids: tuple[int, int] | None = None
    """User and group id to take on; None keeps ours."""
    groups: tuple[int, ...] = ()
    """Supplementary groups, with ``ids`` only."""
    oom_score_adj: int | None = None


class Launcher:
    """A forked child that waits for its order. Owned by whoever forked it, until ``execute``."""

    def __init__(
        self, pid: int, orders: socket.socket, failures: int, cgroup: Cgroup | None
    ) -> None:
        self.pid = pid
        self.cgroup = cgroup
        """The group that the child joins; the launcher does not remove it."""
        self._orders: socket.socket | None = orders
        self._failures = failures

    @classmethod
    def fork(cls, cgroup: Cgroup | None = None, *, isolate: bool = True) -> Launcher:
        """Fork the child, which joins ``cgroup`` and empty network and ipc namespaces at once.

        ``isolate`` is about the namespaces; it needs privilege and is passed over without it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        failures, report = os.pipe()
        parent = os.getpid()
        # No handler of ours may run in the child: they write to descriptors that we share.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                os.close(failures)
                _child(theirs, report, parent, blocked, cgroup, isolate)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        os.close(report)
        os.set_blocking(failures, False)
        return cls(pid, ours, failures, cgroup)

    def execute(self, order: Order, fds: Mapping[int, int]) -> Process:
        """Let the child become ``order.argv``, with ``fds`` (number there → number here).

        Descriptors 0 to 2 not mentioned are /dev/null. The caller keeps its own descriptors and
        owns the returned process. Errors of the child arrive as ``Process.failure``.
        """
        orders, self._orders = self._orders, None
        if orders is None:
            raise LaunchFailed("the launcher has been used or closed")
        document = {
            "argv": order.argv,
            "ids": order.ids,
            "groups": order.groups,
            "oom": order.oom_score_adj,
            "fds": list(fds.keys()),
        }
        payload = json.dumps(document).encode()
        with orders:
            try:
                socket.send_fds(orders, [payload], list(fds.values()))
            except OSError as error:
                why = self._reap() or f"the launched child is gone: {error.strerror}"
                raise LaunchFailed(why) from error
        from shims.microvm.process import Process

        return Process(self.pid, self._failures)

    def close(self) -> None:
        """End a child that got no order. May be repeated, and is no error after ``execute``."""
        orders, self._orders = self._orders, None
        if orders is not None:
            orders.close()
            self._reap()

    def _reap(self) -> str:
        """End the child; return at what it had failed by itself, if it had."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        try:
            return os.read(self._failures, 4096).decode(errors="replace")
        except BlockingIOError:
            return ""  # somebody forked while the pipe was open, and holds it
        finally:
            os.close(self._failures)


def fork_launcher(name: str, cgroups_path: str | None = None) -> Launcher:
    """Create the cgroup of the VM ``name`` and fork the child that will be its QEMU.

    The arguments must be those of the ``MachineConfig`` for which ``start_machine`` gets the
    launcher. Call it as early as possible: it needs no event loop, and joining takes a while.
    ``start_machine`` takes over both; a launcher that never gets there is ended by ``close`` and
    its group by ``launcher.cgroup.remove()``.
    """
    group = machine_cgroup(name, cgroups_path)
    if group is not None:
        group.create()
    return Launcher.fork(group)


def fork_task(task: Callable[[], None], cgroup: Cgroup | None) -> Process:
    """Run ``task`` in a forked child inside ``cgroup``; its exit code is 0 or 127.

    For blocking work that must be charged to a VM. The task must not touch the event loop.
    """
    failures, report = os.pipe()
    parent = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _run_task(task, report, parent, cgroup)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(report)
    os.set_blocking(failures, False)
    from shims.microvm.process import Process

    return Process(pid, failures)


def _child(
    orders: socket.socket,
    report: int,
    parent: int,
    signals: Iterable[int],
    cgroup: Cgroup | None,
    isolate: bool,
) -> NoReturn:
    step = "join the cgroup"
    try:
        if cgroup is not None:
            cgroup.join()
        step = "load libc"
        control = process_control()
        if isolate and os.geteuid() == 0:
            step = "enter empty namespaces"
            control("unshare", _CLONE_NEWNET | _CLONE_NEWIPC)
        step = "read the order"
        payload, received, _, _ = socket.recv_fds(orders, _ORDER_LIMIT, _MOST_FDS)
        if not payload:
            os._exit(0)
        order = json.loads(payload)
        step = "arrange descriptors"
        report = _arrange(dict(zip(order["fds"], received, strict=True)), report)
        step = f"run {order['argv'][0]}"
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        _drop_and_exec(
            Order(tuple(order["argv"]), order["ids"], tuple(order["groups"]), order["oom"]),
            parent,
            control,
        )
    except BaseException as error:
        os.write(report, f"cannot {step}: {error}".encode())
    finally:
        os._exit(_LAUNCH_FAILED)


def _run_task(
    task: Callable[[], None], report: int, parent: int, cgroup: Cgroup | None
) -> NoReturn:
    try:
        process_control()("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if cgroup is not None:
            cgroup.join()
        if os.getppid() == parent:
            task()
        os._exit(0)
    except BaseException as error:
        os.write(report, str(error).encode())
    finally:
        os._exit(_LAUNCH_FAILED)


def process_control() -> Callable[..., None]:
    """Return a function that calls libc by name and raises OSError.

    ctypes is loaded in the child only: it costs 4 ms and a megabyte that the parent can save.
    """
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: int) -> None:
        if getattr(library, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    return call


def _arrange(fds: dict[int, int], report: int) -> int:
    """Put each descriptor at its number, close the rest at exec; return where ``report`` is."""
    import fcntl

    highest = _FIRST_FD + _MOST_FDS
    aside = {to: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, highest) for to, fd in fds.items()}
    report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, highest)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for standard in range(_FIRST_FD):
        os.dup2(null, standard)
    for to, fd in aside.items():
        os.dup2(fd, to)
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number >= _FIRST_FD and number not in fds:
            try:
                os.set_inheritable(number, False)
            except OSError:
                pass  # the descriptor of the listing itself
    return report


def _drop_and_exec(order: Order, parent: int, control: Callable[..., None]) -> NoReturn:
    """Take on the order's identity and become its program."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold the guest's memory
    if order.oom_score_adj is not None:
        try:
            with open("/proc/self/oom_score_adj", "w") as score:
                score.write(str(order.oom_score_adj))
        except PermissionError:
            pass  # a lower one than ours needs privilege: then ours holds, as with runc
    if order.ids is not None:
        user, group = order.ids
        os.setgroups(order.groups)
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    control("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    control("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # the parent died before it could be watched
    _execute(order.argv)


def _execute(argv: Sequence[str]) -> NoReturn:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.chdir("/")
    os.umask(0o077)
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    os.execvpe(argv[0], list(argv), environment)  # noqa: S606  no shell is what we want
