"""The server on asyncio.

::

    server = Server()
    server.add_service("containerd.task.v3.Task", {
        "State": Method.unary(state, StateRequest, StateResponse),
    })
    await server.serve(listening_socket)      # returns after close() or drain()

Every call runs in a task of its own. Its deadline, and the end of its connection, cancel that
task; a handler that has to finish what it began shields it. The answer to a call whose deadline
passed goes out at once, whatever the handler does with its cancellation; the call counts as in
progress until the handler has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING

from shims.ttrpc.call import Context, Method, Peer, ServerCall
from shims.ttrpc.codes import Code
from shims.ttrpc.connection import Connection
from shims.ttrpc.envelope import response_head
from shims.ttrpc.frames import MAX_BODY, Frame, FrameType
from shims.ttrpc.streams import MAX_STREAMS, Call, Closed, Message, Refusal, ServerStreams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shims.ttrpc.errors import LinkClosed

__all__ = ["Context", "Method", "Peer", "Server"]

_log = logging.getLogger(__name__)
_CREDENTIALS = struct.Struct("3i")
MAX_CONNECTIONS = 256
MAX_BREACHES = 16
"""Frames that no correct client sends, in a row: so many, and the connection is closed."""
STALL = 30.0
"""Seconds, twice as many at most, for which a client may leave a frame half sent."""


class Server:
    """Serves any number of services on any number of listening sockets.

    ``max_message`` is the longest body accepted and sent. Of more than ``max_connections`` at a
    time, the later ones are closed at once. With ``require_same_user`` a unix socket
    serves only processes of our own user and group; others are cut off before their first byte is
    read.
    """

    def __init__(
        self,
        *,
        max_message: int = MAX_BODY,
        max_streams: int = MAX_STREAMS,
        max_connections: int = MAX_CONNECTIONS,
        require_same_user: bool = True,
    ) -> None:
        self.max_message = max_message
        self.max_streams = max_streams
        self.max_connections = max_connections
        self.require_same_user = require_same_user
        self.draining = False
        self._services: dict[str, dict[str, Method]] = {}
        self._connections: set[_ServerConnection] = set()
        self._listeners: set[asyncio.Server] = set()
        self._changed = asyncio.Event()

    def add_service(self, name: str, methods: Mapping[str, Method]) -> None:
        """Serve ``methods`` under the full service name; raise ValueError when it is taken."""
        if name in self._services:
            raise ValueError(f"service {name} is already served")
        self._services[name] = dict(methods)

    def find_method(self, service: str, method: str) -> Method | str:
        """Return the method, or the text of the refusal."""
        if (methods := self._services.get(service)) is None:
            return f"service {service}"
        return methods.get(method) or f"method {method}"

    @property
    def calls(self) -> int:
        """How many calls are in progress, on all connections."""
        return sum(len(connection.calls) for connection in self._connections)

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections on a listening socket until ``close`` or ``drain``; owns the socket.

        Cancelling it stops listening and leaves established connections alone.
        """
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        accepting = await loop.create_server(lambda: _ServerConnection(self), sock=listener)
        self._listeners.add(accepting)
        try:
            while not self.draining:
                await self._change()
        finally:
            self._listeners.discard(accepting)
            accepting.close()

    async def serve_connection(self, sock: socket.socket, received: bytes = b"") -> None:
        """Serve one connected socket until it closes; ``received`` was read from it before."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        connection = _ServerConnection(self)
        await loop.connect_accepted_socket(lambda: connection, sock)
        if received:
            connection.received(received)
        try:
            await connection.closed.wait()
        finally:
            connection.abort()

    async def drain(self, timeout: float) -> None:
        """Stop listening, refuse new calls, let running ones end, then close.

        After ``timeout`` seconds the remaining calls are cancelled and answered UNAVAILABLE. A
        client that has not taken its answers by then is cut off.
        """
        self._stop_listening()
        try:
            async with asyncio.timeout(timeout):
                while self.calls:
                    await self._change()
                self.close()
                while self._connections:
                    await self._change()
        except TimeoutError:
            if self.calls:
                _log.warning("%d calls were cut off by the shutdown", self.calls)
            self.close()
        for connection in tuple(self._connections):
            connection.abort()

    async def _change(self) -> None:
        """Wait until a call or a connection ends."""
        self._changed.clear()
        await self._changed.wait()

    def close(self) -> None:
        """Stop listening, cancel all calls, close all connections. May be repeated.

        What is still to be sent is sent, as long as the clients take it; ``drain`` bounds that.
        """
        self._stop_listening()
        for connection in tuple(self._connections):
            connection.close()

    def _stop_listening(self) -> None:
        self.draining = True
        self._changed.set()
        for accepting in tuple(self._listeners):
            accepting.close()

    @property
    def full(self) -> bool:
        """Whether there are as many connections as may be."""
        return len(self._connections) >= self.max_connections

    def connected(self, connection: _ServerConnection) -> None:
        """Take note of a connection."""
        self._connections.add(connection)

    def disconnected(self, connection: _ServerConnection) -> None:
        """Forget a connection that is lost, and whose calls have ended."""
        self._connections.discard(connection)
        self._changed.set()

    def call_ended(self) -> None:
        """Take note that a call has ended: drain may be waiting for it."""
        self._changed.set()


class _ServerConnection(Connection):
    """One client."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.max_message)
        self.server = server
        self.calls: dict[int, ServerCall] = {}
        self._streams = ServerStreams(server.max_streams)
        self._peer: Peer | None = None
        self._breaches = 0
        self._reads = 0
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._peer = _peer_of(transport.get_extra_info("socket"))
        if self.server.require_same_user and self._peer and not _is_same_user(self._peer):
            _log.warning(
                "refused a connection of user %d, group %d", self._peer.uid, self._peer.gid
            )
            self.abort()
        elif self.server.draining:
            self.abort()
        elif self.server.full:
            _log.warning("refused a connection: there are %d", self.server.max_connections)
            self.abort()
        else:
            self.server.connected(self)

    def act(self, frames: list[Frame]) -> None:
        super().act(frames)
        self._reads += 1
        if self._stall is None and self._reader.partial:
            self._watch()

    def _watch(self) -> None:
        self._stall = self.loop.call_later(STALL, self._check_stall, self._reads)

    def _check_stall(self, reads: int) -> None:
        """Close the connection when a frame was left half sent, although we were reading."""
        self._stall = None
        if self.closed.is_set() or not self._reader.partial:
            return
        if self._reads == reads and not self._holds:
            _log.warning("closed a connection: a frame was not sent to its end")
            self.abort()
        else:
            self._watch()

    def frame_received(self, frame: Frame) -> None:
        for event in self._streams.receive(frame):
            match event:
                case Call():
                    self._breaches = 0
                    self._start(event)
                case Message():
                    self._message(event)
                case Closed():
                    self._client_closed(event.stream_id)
                case Refusal():
                    self._refuse(event.stream_id, event.code, event.message)
                    if event.breach:
                        self._count_breach(event.message)

    def _count_breach(self, what: str) -> None:
        self._breaches += 1
        if self._breaches >= MAX_BREACHES:
            _log.warning("closed a connection that breaks the rules: %s", what)
            self.abort()

    def congested(self, yes: bool) -> None:
        # A client that asks without reading the answers is not read any further.
        if yes:
            self.hold(self)
        else:
            self.release(self)

    def lost(self, reason: LinkClosed) -> None:
        if self._stall is not None:
            self._stall.cancel()
        for call in tuple(self.calls.values()):
            call.cancel()
        self._disconnect()

    def close(self) -> None:
        """Cancel all calls, answer them, and close when everything is sent."""
        for call in tuple(self.calls.values()):
            call.finish(Code.UNAVAILABLE, "the server is shutting down")
        if not self.transport.is_closing():
            self.transport.close()

    def _start(self, call: Call) -> None:
        request = call.request
        method = self.server.find_method(request.service, request.method)
        if isinstance(method, str):
            self._refuse(call.stream_id, Code.UNIMPLEMENTED, method)
        elif self.server.draining:
            self._refuse(call.stream_id, Code.UNAVAILABLE, "the server is shutting down")
        elif call.client_streams and not method.kind.client_streams:
            text = f"method {request.method} takes one message, not a stream"
            self._refuse(call.stream_id, Code.INVALID_ARGUMENT, text)
        else:
            started = ServerCall(self, method, call, self._peer, self._ended)
            self.calls[call.stream_id] = started

    def _message(self, message: Message) -> None:
        call = self.calls.get(message.stream_id)
        if call is not None and call.inbox is not None:
            call.inbox.put(message.payload)

    def _client_closed(self, stream_id: int) -> None:
        call = self.calls.get(stream_id)
        if call is not None and call.inbox is not None:
            call.inbox.end()

    def _refuse(self, stream_id: int, code: Code, message: str) -> None:
        if (call := self.calls.get(stream_id)) is not None:
            call.finish(code, message)
            return
        self._streams.finish(stream_id)
        self.send(stream_id, FrameType.RESPONSE, 0, response_head(code, message, 0))

    def _ended(self, call: ServerCall) -> None:
        self.calls.pop(call.stream_id, None)
        self._streams.finish(call.stream_id)
        self.server.call_ended()
        if self.closed.is_set():
            self._disconnect()

    def _disconnect(self) -> None:
        if not self.calls:
            self.server.disconnected(self)


def _is_same_user(peer: Peer) -> bool:
    """Whether the peer has our user and group, as Go's UnixSocketRequireSameUser asks."""
    return (peer.uid, peer.gid) == (os.geteuid(), os.getegid())


def _peer_of(sock: socket.socket) -> Peer | None:
    """Return who is at the other end of a unix socket; None for other families."""
    if sock.family != socket.AF_UNIX:
        return None
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(data))
