"""``start``: answer with the address of the shim for this container, starting one if need be.

The socket is bound before anything is printed, so containerd can connect at once; the daemon gets
it as fd 3 and may still be importing. Everything happens under the group's lock, so two starts for
one group end with one daemon and the same answer.
"""

from __future__ import annotations

import os
import sys
import time

from shims.containerd.shim.bootstrap import Bootstrap, read_bootstrap, read_input, render_answer
from shims.containerd.shim.invocation import is_identifier
from shims.containerd.shim.nursery import fork_daemon
from shims.containerd.shim.processes import start_time
from shims.containerd.shim.sockets import bind_socket, is_listening, socket_path
from shims.containerd.shim.state import (
    GROUP_FILE,
    State,
    log_path,
    private_directory,
    write_file,
)
from shims.core.paths import runtime_path

__all__ = ["LISTENER_FD", "find_group", "start"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from shims.containerd.shim.invocation import Invocation

LISTENER_FD = 3
_GROUP_KEYS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
"""Annotations that name the group, in the order in which runc's shim looks at them."""
_LOCK_SECONDS = 10.0
_DYING_SECONDS = 3.0
_LARGEST_CONFIG = 64 << 20


def start(call: Invocation) -> bytes:
    """Return what to print. Raises OSError, ValueError or TimeoutError when there is no shim."""
    boot = read_bootstrap(call, read_input())
    group = find_group(call.bundle, call.id)
    directory = boot.socket_dir or runtime_path("s", environ=call.environ)
    containerd = call.address or boot.grpc_address
    path = socket_path(directory, (containerd, call.namespace, group))
    with State(call.namespace, group, call.environ).lock(time.monotonic() + _LOCK_SECONDS) as state:
        if not is_listening(path):
            _refuse_anothers(state, path)
            _replace_dead(state, call.id)
            _spawn(call, boot, state, path)
        if group != call.id:
            state.add_member(call.id, call.bundle)
    if group != call.id:
        write_file(f"{call.bundle}/{GROUP_FILE}", group)
    address = f"unix://{path}"
    # containerd 1.6 and 1.7 find the shim again by this file; later ones write their own.
    write_file(f"{call.bundle}/address", address)
    return render_answer(boot.dialect, address)


def find_group(bundle: str, container: str) -> str:
    """Return the id of the group that the bundle's annotations name, else the container's own.

    A bundle of the sandbox API has no config.json yet: it is a group of its own.
    """
    try:
        with open(f"{bundle}/config.json", "rb") as file:
            raw = file.read(_LARGEST_CONFIG)
    except FileNotFoundError:
        return container
    # Most containers have neither annotation, and parsing takes longer than looking.
    if not any(key.encode() in raw for key in _GROUP_KEYS):
        return container
    from shims.containerd.shim.quickjson import load

    spec = load(raw.decode())
    annotations = spec.get("annotations") if isinstance(spec, dict) else None
    if not isinstance(annotations, dict):
        return container
    for key in _GROUP_KEYS:
        if group := annotations.get(key):
            if not is_identifier(group):
                raise ValueError(f"annotations.{key}: got {group!r}; allowed: an identifier")
            return str(group)
    return container


def _refuse_anothers(state: State, path: str) -> None:
    """Refuse a name that lives under another containerd of this host, as runc refuses it.

    The socket's path has containerd's address in it, our state has not: namespace and id name the
    container for the whole host.
    """
    other = state.socket()
    if other and other != path and state.daemon() is not None and is_listening(other):
        raise ValueError(
            f"container {state.group} of namespace {state.namespace} runs already, under another "
            f"containerd (its shim listens at {other}); choose another name"
        )


def _replace_dead(state: State, container: str) -> None:
    """Make room where nobody listens: a daemon that lost its socket is on its way out, or hangs.

    What it did not get rid of stays for the next one: events that containerd has not taken, the
    exits of other members, and what could not be released.
    """
    if not os.listdir(state.directory):
        return
    from shims.containerd.shim.processes import SIGKILL, SIGTERM, end_processes
    from shims.containerd.shim.resources import Resources

    if (daemon := state.daemon()) is not None:
        deadline = time.monotonic() + _DYING_SECONDS
        if end_processes([daemon], SIGTERM, deadline):
            end_processes([daemon], SIGKILL, deadline + 1)
    resources = Resources(state.directory)
    problems = resources.release_all(time.monotonic() + _DYING_SECONDS)
    resources.close()
    if os.path.exists(f"{state.directory}/exits.jsonl"):
        from shims.containerd.shim.exits import ExitJournal

        ExitJournal(state.directory).forget(container)
    first = state.first()
    for name in ("daemon", "options", *(() if problems else ("resources.jsonl",))):
        try:
            os.unlink(f"{state.directory}/{name}")
        except FileNotFoundError:
            pass
    if first is not None and first[0] != container:
        state.add_member(*first)  # its delete is still to come


def _spawn(call: Invocation, boot: Bootstrap, state: State, path: str) -> None:
    listener = bind_socket(path)
    try:
        if boot.options:
            state.write("options", boot.options)
        pid = _spawn_daemon(call, boot, state.group, listener, path)
        events = call.ttrpc_address or boot.ttrpc_address.removeprefix("unix://")
        daemon = f"{pid} {start_time(pid) or 0} {events}"
        state.set_daemon(daemon, path, call.id, call.bundle)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        listener.close()


def _spawn_daemon(
    call: Invocation, boot: Bootstrap, group: str, listener: _socket.socket, path: str
) -> int:
    """Return the pid of the daemon, which has no other fd of ours than the listener."""
    call.group, call.socket = group, path
    call.debug = call.debug or boot.debug
    call.address = call.address or boot.grpc_address
    environ = dict(call.environ)
    if boot.ttrpc_address:
        environ.setdefault("TTRPC_ADDRESS", boot.ttrpc_address)
    log = log_path(call.namespace, group, call.environ)
    private_directory(os.path.dirname(log))
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    output = os.open(log, append | os.O_CLOEXEC, 0o600)
    try:
        pid = fork_daemon(call.arguments(), environ, (listener.fileno(), output))
    finally:
        os.close(output)
    if pid is not None:
        return pid
    main = os.path.join(os.path.dirname(os.path.abspath(__file__)), "main.py")
    flags = ["-I", "-S"] if sys.flags.no_site else ["-I"]
    words = [sys.executable, *flags, main, *call.arguments(), "daemon"]
    # An fd that is already 3 would keep its close-on-exec flag in dup2, so it moves away first.
    source = os.dup(listener.fileno())
    source = os.dup(source) if source == LISTENER_FD else source
    return os.posix_spawn(
        sys.executable,
        words,
        environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, source, LISTENER_FD),
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            # What Python prints before the log is set up (an import error) must not be lost.
            (os.POSIX_SPAWN_OPEN, 2, log, append, 0o600),
        ],
        setsid=True,
        setsigmask=(),
    )
