"""Templates: a booted VM saved once, from which every later VM of its kind starts.

A template is two sealed memfds: the guest's RAM and its device state. It was saved when void-init
waited for its first hello, so nothing in it is individual. Its key is a hash over everything that
must be equal for a clone to work, so a template cannot be used with another QEMU, kernel, option
or host clock.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from shims.core.errors import ShimError, Unreachable
from shims.microvm.keeper import SEALS
from shims.microvm.plan import Boot, Hardware, Memory, render
from shims.microvm.shelf import KeeperGone, Shelf, connect_shelf

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Template",
    "acquire_template",
    "drop_templates",
    "list_templates",
    "seal_template",
    "template_key",
]

log = logging.getLogger("shims.microvm")

T = TypeVar("T")

_KEEPERS = 4
_DYING_SECONDS = 0.02
_FORMAT = 1
"""Rises with every change of what is in a template or of how a clone uses it."""
_FIRMWARE = ("bios-microvm.bin", "bios-256k.bin")
_FIRMWARE_DIRECTORIES = ("/usr/share/seabios", "/usr/share/qemu", "/usr/local/share/qemu")
_CPUINFO_BYTES = 8 * 1024


@dataclass(frozen=True)
class Template:
    """Descriptors and facts of a template. Whoever has it closes it."""

    key: str
    memory: int
    state: int
    digest: str
    """SHA-256 of the device state."""

    def open_state(self) -> int:
        """Return a descriptor of the device state with an offset of its own, at 0.

        The stored descriptor's offset is shared by everybody who got it from the keeper.
        """
        return os.open(f"/proc/self/fd/{self.state}", os.O_RDONLY | os.O_CLOEXEC)

    def is_sound(self) -> bool:
        """Whether the device state is the one that was saved, and the memory cannot change."""
        sealed = fcntl.fcntl(self.memory, fcntl.F_GET_SEALS) & SEALS == SEALS
        return sealed and _digest(self.state) == self.digest

    def close(self) -> None:
        """Close the descriptors. Clones that run keep what they map."""
        os.close(self.memory)
        os.close(self.state)


Builder = Callable[[], Awaitable[Template]]


async def acquire_template(key: str, run_dir: Path, build: Builder, *, timeout: float) -> Template:
    """Return the template for ``key``: from the keeper, or built by ``build`` and then kept.

    Of all that ask at once, one builds and the others wait, at most ``timeout`` seconds; who has
    waited that long builds for himself, so the caller should leave time for that. A damaged
    template is dropped and built again. Without a keeper everybody builds for himself.
    """
    async with AsyncExitStack() as promise:
        try:
            found = await _with_keeper(run_dir, promise, lambda shelf: _fetch(shelf, key, timeout))
        except (ShimError, OSError) as error:
            log.warning("no keeper, so this template serves one VM only: %s", error)
            return await build()
        if found is not None:
            return found
        template = await build()
        try:
            async with AsyncExitStack() as kept:
                # Over a connection of its own: the keeper of the promise may be gone by now.
                await _with_keeper(run_dir, kept, lambda shelf: _store(shelf, template))
        except (ShimError, OSError) as error:
            log.warning("the keeper did not take the template, which serves one VM: %s", error)
        return template


async def _with_keeper(
    run_dir: Path, stack: AsyncExitStack, work: Callable[[Shelf], Awaitable[T]]
) -> T:
    """Do ``work`` on a connection that ``stack`` holds; again with the next keeper if one dies."""
    for _ in range(_KEEPERS - 1):
        shelf = await stack.enter_async_context(await connect_shelf(run_dir))
        try:
            return await work(shelf)
        except KeeperGone:
            # A killed keeper's queue takes connections for a moment longer than it lives.
            await asyncio.sleep(_DYING_SECONDS)
    return await work(await stack.enter_async_context(await connect_shelf(run_dir)))


async def list_templates(run_dir: Path) -> list[dict[str, Any]]:
    """Return what the keeper stores: key, facts, bytes, age and uses. Empty without a keeper."""
    try:
        async with await connect_shelf(run_dir, start=False) as shelf:
            answer, _ = await shelf.ask({"op": "list"})
    except (Unreachable, FileNotFoundError):
        return []
    return list(answer["templates"])


async def drop_templates(run_dir: Path, key: str | None = None) -> list[str]:
    """Let the keeper forget ``key``, or everything; return the keys that it knew."""
    try:
        async with await connect_shelf(run_dir, start=False) as shelf:
            answer, _ = await shelf.ask({"op": "drop", "key": key})
    except (Unreachable, FileNotFoundError):
        return []
    return list(answer["dropped"])


async def stop_keeper(run_dir: Path) -> None:
    """End the keeper, and with it every template."""
    try:
        async with await connect_shelf(run_dir, start=False) as shelf:
            await shelf.ask({"op": "stop"})
    except (Unreachable, FileNotFoundError):
        pass  # none runs


def seal_template(key: str, memory: int, state: int) -> Template:
    """Make a saved VM immutable. Takes the descriptors over.

    Raises OSError (EBUSY) while anything still maps ``memory`` writably.
    """
    for fd in (memory, state):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return Template(key, memory, state, _digest(state))


def template_key(
    hardware: Hardware,
    boot: Boot,
    *,
    qemu: str,
    image_digest: str,
    trust_domain: str,
) -> str:
    """Return the key of the template for a VM like this, started by this QEMU on this host.

    ``qemu`` is the resolved path. The arguments of both the boot and the clone go in, so a change
    of ``plan`` is a change of key.
    """
    facts = {
        "format": _FORMAT,
        "hardware": asdict(hardware),
        "boot": render(hardware, Memory.SHARED, boot).arguments,
        "clone": render(hardware, Memory.PRIVATE, None).arguments,
        "qemu": _identity(qemu),
        "firmware": [_identity(f"{d}/{f}") for d in _FIRMWARE_DIRECTORIES for f in _FIRMWARE],
        "host": _host_identity(hardware),
        "image": image_digest,
        "trust_domain": trust_domain,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


async def _fetch(shelf: Shelf, key: str, timeout: float) -> Template | None:
    """Return a sound template, or None when it is on us to build it."""
    deadline = time.monotonic() + timeout
    while True:
        answer, fds = await shelf.ask({"op": "get", "key": key, "build": True})
        while answer.get("wait"):
            try:
                answer, fds = await shelf.receive(deadline - time.monotonic())
            except TimeoutError:
                log.warning("somebody has been building template %s for too long", key)
                return None
        if not answer["found"]:
            return None
        facts = answer["facts"]
        memory, state = fds
        template = Template(key, memory, state, facts["digest"])
        if facts["key"] == key and template.is_sound():
            return template
        template.close()
        await shelf.ask({"op": "drop", "key": key})


async def _store(shelf: Shelf, template: Template) -> None:
    facts = {
        "key": template.key,
        "digest": template.digest,
        "built_at": time.time(),
    }
    request = {"op": "put", "key": template.key, "facts": facts}
    await shelf.ask(request, [template.memory, template.state])


def _digest(fd: int) -> str:
    size = os.fstat(fd).st_size
    return hashlib.sha256(os.pread(fd, size, 0)).hexdigest()


def _identity(path: str) -> list[Any]:
    """Return what changes when a file is replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return [path]
    return [path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def _host_identity(hardware: Hardware) -> str:
    """Return what a guest can see of the host's CPU: all of it under KVM, nothing under TCG."""
    if hardware.accelerator == "tcg":
        return ""
    with open("/proc/cpuinfo") as file:
        head = file.read(_CPUINFO_BYTES).split("\n\n")[0]
    kept = ("vendor_id", "model name", "stepping", "microcode", "flags", "cpu family")
    return "\n".join(line for line in head.splitlines() if line.startswith(kept))
