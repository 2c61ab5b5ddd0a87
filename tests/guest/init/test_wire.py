"""The guest link byte by byte: what void-init makes of a host that stumbles."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.guest.hello import WELL_KNOWN_TOKEN
from shims.ttrpc.codes import Code
from shims.ttrpc.envelope import decode_response, request_head
from tests.guest.init.harness import DEADLINE, cgroup_root, container_plan, remove_cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shims.ttrpc.envelope import Response

pytestmark = pytest.mark.root

SERVICE = "voidbox.guest.v1.Guest"
SECRET = bytes(range(100, 116))
_HEADER = struct.Struct(">IIBB")
_FRAME_MAX = 4 << 20


def frame(stream: int, method: str, message: object = None, *, service: str = SERVICE) -> bytes:
    """One request."""
    payload = b"" if message is None else message.SerializeToString()  # type: ignore[attr-defined]
    body = request_head(service, method, len(payload), 0, ()) + payload
    return _HEADER.pack(len(body), stream, 1, 0) + body


HELLO = pb.HelloRequest(protocol=1)


class Host:
    """A host without manners."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.settimeout(DEADLINE)
        self._received = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def shake(self, token: bytes = WELL_KNOWN_TOKEN) -> None:
        """A preamble, and everything thrown away up to the nonce."""
        nonce = os.urandom(16)
        self.send(token + nonce)
        while nonce not in self._received:
            self._received = self._received[-15:] + self._more()
        self._received = self._received.partition(nonce)[2]

    def _more(self) -> bytes:
        data = self.socket.recv(1 << 16)
        assert data, "void-init closed the link"
        return data

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            self._received += self._more()
        data, self._received = self._received[:size], self._received[size:]
        return data

    def answer(self) -> tuple[int, Response]:
        """The next answer: its stream, and what it says."""
        size, stream, kind, flags = _HEADER.unpack(self._take(10))
        assert (kind, flags) == (2, 0)
        return stream, decode_response(memoryview(self._take(size)))

    def call(self, stream: int, method: str, message: object = None) -> Response:
        self.send(frame(stream, method, message))
        answered, response = self.answer()
        assert answered == stream
        return response

    def greet(self) -> None:
        assert self.call(1, "Hello", HELLO).code == 0


@pytest.fixture
def host(binary: Path, tmp_path: Path) -> Iterator[Host]:
    ours, theirs = socket.socketpair()
    cgroup = cgroup_root() / f"void-test-{os.getpid()}-{tmp_path.name}"
    (tmp_path / "run").mkdir()
    command = [str(binary), "--test-fd", str(theirs.fileno()), "--root", str(tmp_path),
               "--cgroup", str(cgroup)]  # fmt: skip
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        try:
            yield Host(ours)
            assert process.poll() is None, "void-init died"
        finally:
            ours.close()
            assert process.wait(DEADLINE) == 0
            remove_cgroup(cgroup)


def test_a_frame_cut_anywhere_is_one_frame(host: Host) -> None:
    host.shake()
    host.greet()
    data = frame(3, "ListProcesses", pb.ContainerRef(container_id="nobody"))
    for cut in range(1, len(data)):
        stream = 3 + 2 * cut
        data = frame(stream, "ListProcesses", pb.ContainerRef(container_id="nobody"))
        host.send(data[:cut])
        host.send(data[cut:])
        assert host.answer()[1].code == Code.NOT_FOUND


def test_a_preamble_cut_anywhere_is_understood(host: Host) -> None:
    for cut in range(32):
        nonce = os.urandom(16)
        host.send((WELL_KNOWN_TOKEN + nonce)[:cut])
        host.send((WELL_KNOWN_TOKEN + nonce)[cut:])
        assert host._take(16) == nonce


def test_a_new_host_begins_anew_whatever_the_last_one_left(host: Host) -> None:
    host.shake()
    host.send(frame(1, "Hello", pb.HelloRequest(protocol=1, resync_token=SECRET)))
    host.answer()
    whole = frame(3, "WriteFile", pb.WriteFileRequest(data=os.urandom(300)))
    for cut in range(len(whole)):
        host.send(whole[:cut])
        host.shake(SECRET)
        assert host.call(1, "Hello", HELLO).code == 0


def test_the_token_inside_an_oversize_frame_is_found(host: Host) -> None:
    host.shake()
    host.greet()
    host.send(_HEADER.pack(_FRAME_MAX * 8, 3, 1, 0) + os.urandom(100_000))
    assert host.answer()[1].code == Code.RESOURCE_EXHAUSTED
    host.shake()
    host.greet()


def test_the_old_token_is_worth_nothing_after_hello(host: Host) -> None:
    host.shake()
    host.call(1, "Hello", pb.HelloRequest(protocol=1, resync_token=SECRET))
    data = pb.WriteFileRequest(
        path=b"/run/void/x",
        kind=pb.WriteFileRequest.KIND_FILE,
        data=WELL_KNOWN_TOKEN * 3,
        last=True,
    )
    assert host.call(3, "WriteFile", data).code == 0


def test_garbage_before_the_first_preamble_is_thrown_away(host: Host) -> None:
    host.send(random.Random(7).randbytes(3 << 20) + WELL_KNOWN_TOKEN[:9])
    host.shake()
    host.greet()


def test_hello_comes_first(host: Host) -> None:
    host.shake()
    assert host.call(1, "Telemetry").code == Code.FAILED_PRECONDITION
    assert host.call(3, "Hello", pb.HelloRequest(protocol=2)).code == Code.UNIMPLEMENTED
    assert host.call(5, "Telemetry").code == Code.FAILED_PRECONDITION
    assert host.call(7, "Hello", HELLO).code == 0
    assert host.call(9, "Telemetry").code == 0
    host.shake()
    assert host.call(1, "Telemetry").code == Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(3, "NoSuchMethod"), Code.UNIMPLEMENTED),
        (frame(3, "Telemetry", service="no.such.Service"), Code.UNIMPLEMENTED),
        (frame(4, "Telemetry"), Code.INVALID_ARGUMENT),
        (frame(1, "Telemetry"), Code.INVALID_ARGUMENT),
        (_HEADER.pack(4, 3, 1, 0) + b"\xff\xff\xff\xff", Code.INVALID_ARGUMENT),
        (_HEADER.pack(0, 3, 1, 2), Code.UNIMPLEMENTED),
        (_HEADER.pack(0, 3, 1, 1), Code.UNIMPLEMENTED),
        (_HEADER.pack(_FRAME_MAX + 1, 3, 1, 0) + bytes(_FRAME_MAX + 1), Code.RESOURCE_EXHAUSTED),
    ],
    ids=["method", "service", "even", "used", "garbage", "open", "closed", "oversize"],
)
def test_what_is_not_served_is_refused_by_its_code(host: Host, data: bytes, code: Code) -> None:
    host.shake()
    host.greet()
    host.send(data)
    assert host.answer()[1].code == code
    assert host.call(5, "Telemetry").code == 0


def test_frames_of_other_types_are_let_pass(host: Host) -> None:
    host.shake()
    host.greet()
    host.send(_HEADER.pack(3, 3, 3, 0) + b"abc" + _HEADER.pack(2, 3, 77, 255) + b"de")
    assert host.call(5, "Telemetry").code == 0


def test_the_largest_frame_is_taken(host: Host) -> None:
    host.shake()
    host.greet()
    room = _FRAME_MAX - len(frame(3, "WriteFile", pb.WriteFileRequest(path=b"/run/void/x"))) - 40
    message = pb.WriteFileRequest(
        path=b"/run/void/x", kind=pb.WriteFileRequest.KIND_FILE, data=bytes(room), last=True
    )
    assert host.call(3, "WriteFile", message).code == 0


def test_malformed_messages_of_every_method_are_survived(host: Host) -> None:
    host.shake()
    host.greet()
    dice = random.Random(11)
    methods = [method.name for method in pb.DESCRIPTOR.services_by_name["Guest"].methods]
    stream = 3
    for method in methods:
        if method in {"PowerOff", "Hello", "NextEvents", "ConfigureNetwork"}:
            continue
        for size in (0, 1, 7, 60, 300):
            body = request_head(SERVICE, method, size, 0, ()) + dice.randbytes(size)
            host.send(_HEADER.pack(len(body), stream, 1, 0) + body)
            assert host.answer()[0] == stream
            stream += 2


def test_answers_that_nobody_reads_stop_the_reading_of_calls(host: Host) -> None:
    host.shake()
    host.greet()
    host.socket.setblocking(False)
    data, stream, taken = b"", 3, 0
    with contextlib.suppress(BlockingIOError):
        while taken < 64 << 20:
            if not data:
                data = b"".join(frame(stream + 2 * n, "Telemetry") for n in range(500))
                stream += 1000
            sent = host.socket.send(data)
            taken += sent
            data = data[sent:]
    assert taken < 64 << 20
    host.socket.settimeout(DEADLINE)
    complete = (stream - 3) // 2 - data.count(b"Telemetry")
    for expected in range(complete - 1):
        assert host.answer()[0] == 3 + 2 * expected


def test_calls_that_waited_for_room_are_answered_though_nothing_more_comes(host: Host) -> None:
    host.shake()
    host.greet()
    data = pb.WriteFileRequest(
        path=b"/run/void/x", kind=pb.WriteFileRequest.KIND_FILE, data=bytes(60_000), last=True
    )
    assert host.call(3, "WriteFile", data).code == 0
    read = pb.ReadFileRequest(path=b"/run/void/x", limit=60_000)
    streams = range(5, 5 + 2 * 200, 2)
    host.send(b"".join(frame(stream, "ReadFile", read) for stream in streams))
    for stream in streams:
        answered, response = host.answer()
        assert (answered, response.code) == (stream, 0)


def test_every_flooding_stream_has_its_turn(host: Host) -> None:
    host.shake()
    host.greet()
    names = [f"c{number}" for number in range(6)]
    for stream, name in enumerate(names):
        plan = container_plan(name, "sh", "-c", "exec cat /dev/zero")
        create = pb.CreateContainerRequest(plan=plan)
        assert host.call(3 + 4 * stream, "CreateContainer", create).code == 0
        start = pb.ProcessRef(container_id=name)
        assert host.call(5 + 4 * stream, "StartProcess", start).code == 0
    for first in range(101, 1001, 100):
        for stream, name in enumerate(names):
            read = pb.ReadStdioRequest(container_id=name, stream=pb.STREAM_STDOUT, limit=1 << 20)
            host.send(frame(first + 2 * stream, "ReadStdio", read))
        answered = {host.answer()[0] for _ in names}
        assert answered == {first + 2 * stream for stream in range(len(names))}


def test_control_is_answered_during_a_flood(host: Host) -> None:
    host.shake()
    host.greet()
    plan = container_plan("c", "sh", "-c", "exec cat /dev/zero")
    assert host.call(3, "CreateContainer", pb.CreateContainerRequest(plan=plan)).code == 0
    assert host.call(5, "StartProcess", pb.ProcessRef(container_id="c")).code == 0
    read = pb.ReadStdioRequest(container_id="c", stream=pb.STREAM_STDOUT, limit=1 << 20)
    host.send(frame(7, "ReadStdio", read))
    waits, stream = [], 7
    for _ in range(60):
        stream += 2
        control, asked = stream, time.monotonic()
        host.send(frame(control, "Telemetry"))
        while host.answer()[0] != control:
            stream += 2
            host.send(frame(stream, "ReadStdio", read))
        waits.append(time.monotonic() - asked)
    assert sorted(waits)[len(waits) // 2] < 0.05
