"""The sweep: release what shims left for which nobody calls ``delete``.

containerd calls it for shims that it knows. One that was killed before containerd connected, whose
containerd was reinstalled, or whose delete could not release everything, leaves its socket, its
state and what it held. A daemon looks for them once, when its container runs.

Only what is certainly nobody's is touched: the group's lock is free, its daemon is dead, and no
bundle of its members exists.
"""

from __future__ import annotations

import os
import time

from shims.containerd.shim.courier import sweep_letters
from shims.containerd.shim.delete import forward_events
from shims.containerd.shim.invocation import is_identifier
from shims.containerd.shim.removal import remove_tree
from shims.containerd.shim.resources import Resources
from shims.containerd.shim.state import State
from shims.core.paths import runtime_path

__all__ = ["sweep"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shims.containerd.shim.invocation import Invocation

_SECONDS = 3.0
"""For everything; the next daemon goes on."""
_MACHINE_SECONDS = 60.0
"""Age of a machine's directory that is no longer about to be used."""


def sweep(call: Invocation) -> list[str]:
    """Release what is left, and return a line for each thing that was, or could not be.

    ``call`` is the daemon's own. Cheap when there is nothing: a look at each group's two files.
    """
    deadline = time.monotonic() + _SECONDS
    lines: list[str] = []
    for state in list(_groups(call.environ)):
        if time.monotonic() < deadline and _is_forgotten(state):
            lines += _release(state, call, deadline)
    sweep_letters(call.environ)
    return lines + _sweep_machines(call.environ)


def _groups(environ: Mapping[str, str]) -> Iterator[State]:
    root = runtime_path("shim", environ=environ)
    for namespace in filter(is_identifier, _names(root)):
        for group in filter(is_identifier, _names(f"{root}/{namespace}")):
            yield State(namespace, group, environ)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_forgotten(state: State) -> bool:
    return state.daemon() is None and not state.members()


def _release(state: State, call: Invocation, deadline: float) -> list[str]:
    try:
        lock = state.lock(time.monotonic(), create=False)
    except (OSError, TimeoutError):
        return []  # a start or a delete is at it
    with lock:
        if not _is_forgotten(state):
            return []
        resources = Resources(state.directory)
        problems = resources.release_all(deadline)
        resources.close()
        if path := state.socket():
            remove_tree(path)
        # One of another containerd's shims, perhaps: its events are for that one.
        problems += forward_events(call, state, state.events_address() or call.ttrpc_address)
        if not problems:
            state.remove()
    title = f"{state.namespace}/{state.group}"
    return [f"swept the remains of {title}", *(f"{title}: {problem}" for problem in problems)]


# ---- directories of machines -------------------------------------------------------------------


def _sweep_machines(environ: Mapping[str, str]) -> list[str]:
    """Remove the directories of VMs that nobody has on record and no process was started for."""
    folder = runtime_path("vm", environ=environ)
    old = [name for name in _names(folder) if _is_old(f"{folder}/{name}")]
    if not old:
        return []
    recorded = {path for state in _groups(environ) for path in _paths(state)}
    left = [name for name in old if f"{folder}/{name}" not in recorded]
    running = _words_of_processes() if left else set()
    swept = [name for name in left if os.fsencode(name) not in running]
    for name in swept:
        remove_tree(f"{folder}/{name}")
    return [f"swept the directory of VM {name}" for name in swept]


def _is_old(path: str) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > _MACHINE_SECONDS
    except FileNotFoundError:
        return False


def _paths(state: State) -> Iterator[str]:
    for kind, name, _ in Resources(state.directory).held():
        if kind == "path":
            yield name


def _words_of_processes() -> set[bytes]:
    """Return every word of every command line: QEMU's have the machine's name (``-name``)."""
    words: set[bytes] = set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words.update(file.read().split(b"\0"))
        except OSError:
            pass  # it ended
    return words
