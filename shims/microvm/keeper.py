"""The keeper: a small process that holds sealed templates for every shim of one user.

It stores descriptors, nothing else: a memfd with a booted guest's RAM, one with its device state,
and a page of facts about them. Shims come and go; the keeper makes what one of them built last for
the next. It may die at any time: then the next start builds again.

Runs as ``python -I -S keeper.py DIRECTORY``: standard library only, so that it stays small. Its
listening socket is descriptor 3, made by whoever started it (``shims.microvm.shelf``). Peers of
another user are hung up on. One request and one answer at a time per connection, each a JSON
object in one packet (SOCK_SEQPACKET), descriptors beside it:

    {"op": "get", "key": K, "build": B}     → {"found": true, "facts": {…}} + memory, state
                                            → {"found": false, "build": true}: build it, others wait
                                            → {"found": false, "build": false}
                                            → {"found": false, "wait": true}, and later one of these
    {"op": "put", "key": K, "facts": {…}} + memory, state       → {"ok": true}
    {"op": "drop", "key": K or null for all}                    → {"dropped": [K, …]}
    {"op": "list"}                                              → {"templates": […], "pid": N}
    {"op": "stop"}                                              → {"ok": true}, and it ends

A ``get`` with ``build`` that finds another builder at work is told at once to wait, so that its
peer knows that we live, and is answered again when that one has put the template, or has hung up;
then the oldest waiter becomes the builder, and the others are told to wait on.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import socket
import struct
import sys
import time

__all__ = ["SEALS", "Keeper", "Stored", "serve_keeper"]

LISTENER = 3
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
LARGEST_PACKET = 64 * 1024
MOST_TEMPLATES = 8
MOST_PEERS = 256
IDLE_SECONDS = 60.0
"""With nothing stored and nobody connected."""
UNUSED_SECONDS = 6 * 3600.0
"""After which a template that nobody asked for is given up."""
_CREDENTIALS = struct.Struct("iII")


class Stored:
    """A template in the keeper. Owns its descriptors."""

    def __init__(self, key: str, facts: dict[str, object], fds: list[int]) -> None:
        self.key = key
        self.facts = facts
        self.fds = fds
        self.stored_at = self.used_at = time.monotonic()
        self.uses = 0

    def describe(self) -> dict[str, object]:
        """Return what ``list`` shows."""
        now = time.monotonic()
        used = sum(os.fstat(fd).st_blocks * 512 for fd in self.fds)
        return {
            "key": self.key,
            "facts": self.facts,
            "bytes": used,
            "age": now - self.stored_at,
            "unused": now - self.used_at,
            "uses": self.uses,
        }

    def close(self) -> None:
        """Give the memory back as soon as no VM maps it."""
        for fd in self.fds:
            os.close(fd)


class Keeper:
    """The requests and their rules; one instance serves all peers in one thread."""

    def __init__(self) -> None:
        self.templates: dict[str, Stored] = {}
        self.builders: dict[str, socket.socket] = {}
        self.waiters: list[tuple[str, socket.socket]] = []
        self.stopping = False

    def handle(self, peer: socket.socket, packet: bytes, fds: list[int]) -> None:
        """Carry out one request. Descriptors that it does not store are closed."""
        try:
            request = json.loads(packet)
            operation = _OPERATIONS[request["op"]]
            if request["op"] in _WITH_KEY and not isinstance(request["key"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            _close_all(fds)
            self.answer(peer, {"error": "not a request of this keeper"})
            return
        operation(self, peer, request, fds)

    def forget_peer(self, peer: socket.socket) -> None:
        """A peer hung up: what it was building is up to the next in line."""
        self.waiters = [(key, waiter) for key, waiter in self.waiters if waiter is not peer]
        for key in [key for key, builder in self.builders.items() if builder is peer]:
            del self.builders[key]
            self._wake(key)

    def expire(self) -> None:
        """Give up templates that nobody used for long."""
        limit = time.monotonic() - UNUSED_SECONDS
        for stored in [one for one in self.templates.values() if one.used_at < limit]:
            self.templates.pop(stored.key).close()

    def get(self, peer: socket.socket, request: dict[str, object], fds: list[int]) -> None:
        _close_all(fds)
        key = str(request["key"])
        if stored := self.templates.get(key):
            stored.used_at = time.monotonic()
            stored.uses += 1
            self.answer(peer, {"found": True, "facts": stored.facts}, stored.fds)
        elif not request.get("build"):
            self.answer(peer, {"found": False, "build": False})
        elif key in self.builders:
            self.waiters.append((key, peer))
            self.answer(peer, {"found": False, "wait": True})
        else:
            self.builders[key] = peer
            self.answer(peer, {"found": False, "build": True})

    def put(self, peer: socket.socket, request: dict[str, object], fds: list[int]) -> None:
        key, facts = str(request["key"]), request.get("facts")
        if len(fds) != 2 or not isinstance(facts, dict) or not all(map(_is_sealed, fds)):
            _close_all(fds)
            self.answer(peer, {"error": "a template is two sealed memfds and their facts"})
            return
        self._discard(key)
        while len(self.templates) >= MOST_TEMPLATES:
            oldest = min(self.templates.values(), key=lambda stored: stored.used_at)
            self._discard(oldest.key)
        self.templates[key] = Stored(key, facts, fds)
        self.builders.pop(key, None)
        self.answer(peer, {"ok": True})
        self._wake(key)

    def drop(self, peer: socket.socket, request: dict[str, object], fds: list[int]) -> None:
        _close_all(fds)
        key = request.get("key")
        keys = [str(key)] if key is not None else list(self.templates)
        self.answer(peer, {"dropped": [one for one in keys if self._discard(one)]})

    def describe(self, peer: socket.socket, _: dict[str, object], fds: list[int]) -> None:
        _close_all(fds)
        templates = [stored.describe() for stored in self.templates.values()]
        self.answer(peer, {"templates": templates, "pid": os.getpid()})

    def stop(self, peer: socket.socket, _: dict[str, object], fds: list[int]) -> None:
        _close_all(fds)
        self.stopping = True
        self.answer(peer, {"ok": True})

    def answer(
        self, peer: socket.socket, reply: dict[str, object], fds: list[int] | None = None
    ) -> None:
        """Send an answer; a peer that does not take it is hung up on by the loop."""
        try:
            socket.send_fds(peer, [json.dumps(reply).encode()], fds or [])
        except OSError:
            peer.shutdown(socket.SHUT_RDWR)

    def _wake(self, key: str) -> None:
        waiting = [peer for wanted, peer in self.waiters if wanted == key]
        self.waiters = [pair for pair in self.waiters if pair[0] != key]
        for peer in waiting:
            self.get(peer, {"key": key, "build": True}, [])

    def _discard(self, key: str) -> bool:
        stored = self.templates.pop(key, None)
        if stored is not None:
            stored.close()
        return stored is not None


_OPERATIONS = {
    "get": Keeper.get,
    "put": Keeper.put,
    "drop": Keeper.drop,
    "list": Keeper.describe,
    "stop": Keeper.stop,
}


_WITH_KEY = ("get", "put")


def serve_keeper(listener: socket.socket, idle_seconds: float = IDLE_SECONDS) -> None:
    """Serve until told to stop, or until idle for ``idle_seconds`` with nothing stored."""
    keeper = Keeper()
    peers: set[socket.socket] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while not keeper.stopping:
            busy = bool(keeper.templates or peers)
            ready = selector.select(None if busy and peers else idle_seconds)
            keeper.expire()
            if not ready and not keeper.templates and not peers:
                return
            for chosen, _ in ready:
                sock = chosen.fileobj
                assert isinstance(sock, socket.socket)
                if sock is listener:
                    _accept(listener, selector, peers)
                elif not _serve_peer(keeper, sock):
                    selector.unregister(sock)
                    peers.discard(sock)
                    keeper.forget_peer(sock)
                    sock.close()


def _accept(
    listener: socket.socket, selector: selectors.BaseSelector, peers: set[socket.socket]
) -> None:
    peer, _ = listener.accept()
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, group = _CREDENTIALS.unpack(credentials)
    if (user, group) != (os.geteuid(), os.getegid()) or len(peers) >= MOST_PEERS:
        peer.close()
        return
    peer.settimeout(5.0)  # nobody may hold up the others by not reading
    peers.add(peer)
    selector.register(peer, selectors.EVENT_READ)


def _serve_peer(keeper: Keeper, peer: socket.socket) -> bool:
    """Serve one request; False when the peer is gone."""
    try:
        packet, fds, _, _ = socket.recv_fds(peer, LARGEST_PACKET, 2)
    except OSError:
        return False
    if not packet:
        _close_all(fds)
        return False
    keeper.handle(peer, packet, fds)
    return True


def _is_sealed(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:
        return False


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _leave_cgroup() -> None:
    """Leave the cgroup of the shim that started us, which will be removed with it."""
    with open("/proc/self/mountinfo") as mounts:
        roots = [line.split()[4] for line in mounts if " - cgroup" in line]
    for root in roots:
        try:
            with open(f"{root}/cgroup.procs", "w") as group:
                group.write("0")
        except OSError:
            pass  # not ours to manage: then we share the fate of the group


def main(directory: str, idle_seconds: float) -> None:
    """Serve on descriptor 3, and take the socket's name away when leaving."""
    os.chdir("/")
    _leave_cgroup()
    path = f"{directory}/keeper.sock"
    ours = os.stat(path).st_ino
    serve_keeper(socket.socket(fileno=LISTENER), idle_seconds)
    # Whoever starts a keeper holds this lock, so a successor's socket is not unlinked here.
    lock = os.open(f"{directory}/keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        if os.stat(path).st_ino == ours:
            os.unlink(path)
    except FileNotFoundError:
        pass  # the whole directory was taken away


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else IDLE_SECONDS)
