"""``delete``: release all that a container left on the host, and say how it ended.

containerd runs it when it lost the shim, and at the end of every normal delete. It depends on
nothing but the state directory, takes five seconds at most, may be repeated and may run several
times at once. While the daemon of the group still runs, it looks after its containers itself; only
the group's own id ends it.
"""

from __future__ import annotations

import os
import time

from shims.containerd.shim import pb
from shims.containerd.shim.exits import Exit, ExitJournal
from shims.containerd.shim.processes import SIGKILL, SIGTERM, end_processes
from shims.containerd.shim.removal import remove_tree, unmount_below
from shims.containerd.shim.resources import Resources
from shims.containerd.shim.state import State, group_of_bundle, log_path

__all__ = ["delete"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shims.containerd.shim.invocation import Invocation
    from shims.containerd.shim.processes import Process

_SECONDS = 4.0
"""containerd waits five seconds, the start of the interpreter included."""
_GRACE_SECONDS = 1.5
_KILLED = 137
_KEPT_LOGS = 32
"""How many logs of dead shims stay, per namespace."""


def delete(call: Invocation) -> tuple[bytes, list[str]]:
    """Return the DeleteResponse to print, and a line for each thing that could not be released."""
    deadline = time.monotonic() + _SECONDS
    group = group_of_bundle(call.bundle, call.id)
    state = State(call.namespace, group, call.environ)
    problems: list[str] = []
    ended: Exit | None = None
    if state.exists and not state.is_anothers(call.id, call.bundle):
        ended = ExitJournal(state.directory).find(call.id)
        try:
            if (seen := _end_daemon(call, state, deadline)) is not None:
                # It may have recorded, as its last deed, what it killed.
                ended = ExitJournal(state.directory).find(call.id) or ended
            with state.lock(deadline, create=False):
                problems = _release(call, state, seen, deadline)
        except FileNotFoundError:
            pass  # another delete was faster
        except (OSError, TimeoutError) as error:
            problems = [str(error)]
    try:
        unmount_below(f"{call.bundle}/rootfs")
    except OSError as error:
        problems.append(str(error))
    return render_response(ended), problems


def render_response(ended: Exit | None) -> bytes:
    """Return a DeleteResponse: pid 1, exit_status 2, exited_at 3."""
    if ended is None:
        return pb.number(2, _KILLED) + pb.timestamp(3, time.time_ns())
    status = pb.number(1, ended.pid) + pb.number(2, ended.status)
    return status + pb.timestamp(3, ended.at_ns)


def _end_daemon(call: Invocation, state: State, deadline: float) -> Process | None:
    """End the daemon if its whole group is deleted; return the one that we ended."""
    daemon = state.daemon()
    if daemon is None or call.id != state.group:
        return None
    # Without the lock: a daemon that ends in order may want it.
    grace = min(deadline, time.monotonic() + _GRACE_SECONDS)
    if end_processes([daemon], SIGTERM, grace):
        end_processes([daemon], SIGKILL, deadline)
    return daemon


def _release(call: Invocation, state: State, seen: Process | None, deadline: float) -> list[str]:
    """Release what the dead daemon held; its journals stay until the last member is deleted.

    While we waited for the lock a ``start`` may have made another daemon, which holds what is
    recorded now. A member leaves it alone, and so does the group's own delete: it was called for
    an earlier one. ``seen`` is the daemon that we ended.
    """
    daemon = state.daemon()
    if daemon is not None and call.id != state.group:
        state.drop_member(call.id)
        return []
    if daemon is not None and (seen is None or seen.started != daemon.started):
        return []
    resources = Resources(state.directory)
    problems = resources.release_all(deadline)
    resources.close()
    if path := state.socket():
        remove_tree(path)
    problems += forward_events(call, state, call.ttrpc_address)
    state.drop_member(call.id)
    left = state.members()
    for bundle in left.values():
        unmount_below(f"{bundle}/rootfs")
    if not left and not problems:
        state.remove()
        _prune_logs(log_path(call.namespace, state.group, call.environ), state)
    elif not problems:
        remove_tree(f"{state.directory}/resources.jsonl")
    return problems


def forward_events(call: Invocation, state: State, ttrpc_address: str) -> list[str]:
    """See to it that containerd gets what it had not taken when the daemon died.

    Returns what went wrong. The caller holds the lock.
    """
    try:
        # The journal is emptied whenever containerd has everything: then there is nothing to do.
        if not os.stat(f"{state.directory}/events.jsonl").st_size:
            return []
    except FileNotFoundError:
        return []
    from shims.containerd.shim.courier import hand_over

    try:
        hand_over(state, call, ttrpc_address)
    except OSError as error:
        return [f"events: {error}"]
    return []


def _prune_logs(path: str, state: State) -> None:
    """Remove the log of this group if nothing was logged, and the oldest of all if there are many.

    Those of groups that have a state directory stay: their shims run, and may be asked to dump.
    """
    try:
        if os.stat(path).st_size == 0:
            os.unlink(path)
        folder = os.path.dirname(path)
        groups = os.path.dirname(state.directory)
        names = os.listdir(folder)
        if len(names) > 2 * _KEPT_LOGS:
            logs = [
                f"{folder}/{name}"
                for name in names
                if not os.path.exists(f"{groups}/{name.removesuffix('.1').removesuffix('.log')}")
            ]
            logs.sort(key=lambda log: os.stat(log).st_mtime_ns)
            for log in logs[:-_KEPT_LOGS]:
                os.unlink(log)
    except FileNotFoundError:
        pass  # another delete prunes too
