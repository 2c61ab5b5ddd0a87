"""How a connection to void-init begins: the preamble, and what Hello says.

The page protos/guest-link.md draws both columns of it.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.core.errors import DeadlineExceeded, Unreachable

if TYPE_CHECKING:
    import socket

__all__ = ["PROTOCOL", "WELL_KNOWN_TOKEN", "Hello", "shake_hands", "wait_ready"]

PROTOCOL = 1
WELL_KNOWN_TOKEN = b"voidbox-link-v1\n"
"""Opens the first connection to a VM, before any Hello has set a secret one."""
_NONCE_SIZE = 16
_DISCARD_MAX = 64 << 20
"""What an earlier connection left in the pipe is thrown away, up to this."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What the VM learns before anything runs in it; a clone must learn it before all else."""

    hostname: str = ""
    """Empty leaves the VM's name."""
    machine_id: str = ""
    """32 lower-case hex digits; empty leaves it."""
    wall_clock_ns: int | None = None
    """None: the host's clock at the moment of sending."""
    entropy: bytes = field(default_factory=lambda: os.urandom(64), repr=False)
    """Credited to the VM's random generator, which is then reseeded."""
    resync_token: bytes = field(default_factory=lambda: os.urandom(16), repr=False)
    """Opens the next connection to this VM: keep it to reconnect. 16 secret bytes."""
    lonely_poweroff_ms: int = 0
    """The VM powers off after this long without a host; 0 = never."""

    def to_message(self, current_token: bytes) -> pb.HelloRequest:
        """Return the request, with the time of now, on a connection that ``current_token`` opened.

        The guest takes its current token for a new preamble wherever it sees it, so a token that
        stays the same is left out, which keeps it.
        """
        keep = self.resync_token == current_token
        now = time.time_ns() if self.wall_clock_ns is None else self.wall_clock_ns
        return pb.HelloRequest(
            protocol=PROTOCOL,
            wall_clock_ns=now,
            entropy=self.entropy,
            hostname=self.hostname,
            machine_id=self.machine_id,
            resync_token=b"" if keep else self.resync_token,
            lonely_poweroff_ms=self.lonely_poweroff_ms,
        )


async def shake_hands(sock: socket.socket, token: bytes, timeout: float) -> bytes:
    """Send the preamble and wait for its nonce; return what came after it.

    Raises DeadlineExceeded, or Unreachable when the other end closes.
    """
    loop = asyncio.get_running_loop()
    nonce = os.urandom(_NONCE_SIZE)
    sock.setblocking(False)
    seen, discarded = b"", 0
    try:
        async with asyncio.timeout(timeout):
            await loop.sock_sendall(sock, token + nonce)
            while (at := seen.find(nonce)) < 0:
                discarded += len(seen)
                piece = await loop.sock_recv(sock, 65536)
                if not piece or discarded > _DISCARD_MAX:
                    raise Unreachable("the VM closed the guest link before it answered")
                seen = seen[-_NONCE_SIZE + 1 :] + piece
    except TimeoutError as error:
        raise DeadlineExceeded(f"void-init did not answer within {timeout:g} s") from error
    except OSError as error:
        raise Unreachable(f"guest link: {error.strerror}") from error
    return seen[at + _NONCE_SIZE :]


async def wait_ready(
    sock: socket.socket, *, token: bytes = WELL_KNOWN_TOKEN, timeout: float
) -> None:
    """Return when void-init is ready for its Hello, without saying one. The caller keeps ``sock``.

    This is the moment to take a template: modules are loaded, cgroups prepared, and nothing about
    the VM is individual yet.
    """
    await shake_hands(sock, token, timeout)
