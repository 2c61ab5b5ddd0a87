"""Takes the place of the daemon in a copy of the package: holds what a shim holds, and waits.

FAKE_HOLD makes it hold things that ``delete`` must release: a child, a cgroup, a mount, a file.
FAKE_DEAF makes it ignore SIGTERM, FAKE_FAILURE fail at once. FAKE_NURSERY makes it begin the
nursery, as a real one does. FAKE_WORD is told to whoever asks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from shims.containerd.shim import nursery
from shims.containerd.shim.exits import Exit, ExitJournal
from shims.containerd.shim.resources import Resources
from shims.containerd.shim.state import State

if TYPE_CHECKING:
    import socket

    from shims.containerd.shim.invocation import Invocation


def serve(call: Invocation, listener: socket.socket) -> int:
    """Answer each connection with one line that tells what this process is."""
    if os.environ.get("FAKE_FAILURE"):
        raise RuntimeError("no such luck")
    if os.environ.get("FAKE_DEAF"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    state = State(call.namespace, call.group, call.environ)
    held = _hold(state.directory, os.environ.get("FAKE_HOLD", ""))
    if status := os.environ.get("FAKE_EXIT"):
        with ExitJournal(state.directory) as journal:
            journal.record(Exit(call.id, "", 4242, int(status), 1_700_000_000_000_000_123))
            journal.record(Exit(call.id, "exec", 4243, 1, 1))
    if status := os.environ.get("FAKE_LAST"):
        signal.signal(signal.SIGTERM, lambda *_: _end(state.directory, call.id, int(status)))
    if os.environ.get("FAKE_NURSERY"):
        nursery.begin(call.environ)
    about = {
        "nursery": "shims.containerd.shim.nurse" in sys.modules,
        "pid": os.getpid(),
        "arguments": call.arguments(),
        "fds": _fds(),
        "cwd": os.getcwd(),
        "sid": os.getsid(0),
        "ttrpc": call.ttrpc_address,
        "options": state.read_options().hex(),
        "held": held,
        "word": os.environ.get("FAKE_WORD"),
    }
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(json.dumps(about).encode())
            except OSError:
                pass  # a probe of start, gone already


def _end(directory: str, container: str, status: int) -> None:
    """End as a daemon does that kills its containers first."""
    ExitJournal(directory).record(Exit(container, "", 4242, status, 1))
    os._exit(0)


def _fds() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the fd of this listing
    return found


def _hold(directory: str, folder: str) -> dict[str, object]:
    if not folder:
        return {}
    resources = Resources(directory)
    held: dict[str, object] = {}
    tree = f"{folder}/tree"
    os.makedirs(f"{tree}/inner")
    os.symlink(folder, f"{tree}/inner/link")
    resources.add_path(tree)
    if os.geteuid() == 0:
        mount = f"{folder}/mount point"
        os.makedirs(mount)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount], check=True)
        resources.add_mount(mount)
        held["mount"] = mount
    child = subprocess.Popen(["sleep", "1000"])
    resources.add_process(child.pid, "qemu")
    held["child"] = child.pid
    if cgroup := os.environ.get("FAKE_CGROUP"):
        os.makedirs(f"{cgroup}/inner")
        resources.add_cgroup(cgroup)
        other = subprocess.Popen(["sleep", "1000"])
        with open(f"{cgroup}/inner/cgroup.procs", "w") as file:
            file.write(str(other.pid))
        held["other"] = other.pid
    return held
