"""The courier: delivers what a dead daemon could not, and ends.

A daemon journals its events until containerd took them. When it was killed, or containerd was away
for longer than the daemon lived, ``delete`` gives the journal to a process of its own, which tries
for a minute: an exit reaches containerd although nobody is left who saw it. Delivery is at least
once, as everywhere.

::

    <runtime>/courier/<unique>/events.jsonl     locked (flock on the directory) by its courier
"""

from __future__ import annotations

import os
import sys
import time

from shims.containerd.shim.processes import SIGTERM
from shims.containerd.shim.removal import remove_tree
from shims.containerd.shim.state import private_directory
from shims.core.paths import runtime_path

__all__ = ["deliver", "hand_over", "sweep_letters"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shims.containerd.shim.invocation import Invocation
    from shims.containerd.shim.state import State

SECONDS = 60.0
"""How long containerd may stay away: a restart or an upgrade, not a night."""
_FORGOTTEN_SECONDS = 120.0
"""Age of a journal whose courier must be dead, and not on its way."""
_JOURNAL = "events.jsonl"


def hand_over(state: State, call: Invocation, ttrpc_address: str, seconds: float = SECONDS) -> None:
    """Give the journal of a dead daemon to a courier. The caller holds the lock of ``state``.

    ``call`` names containerd's program and gRPC socket, for a containerd without a ttrpc address.
    Raises OSError when there can be no courier; the journal is where it was, then.
    """
    journal = f"{state.directory}/{_JOURNAL}"
    unique = f"{os.getpid()}-{time.monotonic_ns()}"
    directory = runtime_path("courier", unique, environ=call.environ)
    private_directory(directory)
    os.rename(journal, f"{directory}/{_JOURNAL}")
    address = (ttrpc_address, call.address, call.publish_binary)
    try:
        _spawn([directory, str(seconds), state.namespace, *address], call)
    except BaseException:
        os.rename(f"{directory}/{_JOURNAL}", journal)
        os.rmdir(directory)
        raise


def _spawn(words: list[str], call: Invocation) -> None:
    main = os.path.join(os.path.dirname(os.path.abspath(__file__)), "main.py")
    flags = ["-I", "-S"] if sys.flags.no_site else ["-I"]
    # setsid(1) forks and ends, so the courier belongs to init, whoever we are.
    pid = os.posix_spawnp(
        "setsid",
        ["setsid", "--fork", sys.executable, *flags, main, "courier", *words],
        dict(call.environ),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
        ],
        setsigmask=(),
        setsigdef=range(1, 32),
    )
    os.waitpid(pid, 0)


def deliver(words: list[str]) -> int:
    """Be the courier: ``words`` are those of ``hand_over``. Return 0 when all was taken.

    Leaves nothing, whatever the outcome.
    """
    directory, seconds, namespace, ttrpc_address, grpc_address, publish_binary = words
    import asyncio
    import fcntl

    from shims.containerd.shim.events import Publisher

    async def forward() -> bool:
        us = asyncio.current_task()
        assert us is not None
        asyncio.get_running_loop().add_signal_handler(SIGTERM, us.cancel)
        publisher = Publisher(
            directory,
            namespace,
            ttrpc_address=ttrpc_address,
            publish_binary=publish_binary,
            grpc_address=grpc_address,
        )
        async with publisher:
            return await publisher.flush(float(seconds))

    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return 0 if asyncio.run(forward()) else 1
    except asyncio.CancelledError:
        return 1
    finally:
        _discard(directory)
        os.close(lock)


def sweep_letters(environ: Mapping[str, str]) -> None:
    """Remove the journals of couriers that were killed. Cheap when there are none."""
    import fcntl

    now = time.time()
    for directory in _letters(runtime_path("courier", environ=environ)):
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # delivered by now
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if now - os.fstat(lock).st_mtime > _FORGOTTEN_SECONDS:
                _discard(directory)
        except BlockingIOError:
            pass  # its courier lives
        finally:
            os.close(lock)


def _letters(folder: str) -> Iterator[str]:
    try:
        yield from [f"{folder}/{name}" for name in os.listdir(folder)]
    except FileNotFoundError:
        pass


def _discard(directory: str) -> None:
    remove_tree(directory)
    try:
        os.rmdir(os.path.dirname(directory))
    except OSError:  # another courier is under way
        pass
