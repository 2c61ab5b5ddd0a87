"""The rules of streams, without any I/O."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shims.ttrpc.codes import Code
from shims.ttrpc.envelope import request_head, response_head
from shims.ttrpc.frames import Flag, Frame, FrameType
from shims.ttrpc.streams import (
    LAST_ID,
    Answer,
    Call,
    ClientStreams,
    Closed,
    Message,
    Refusal,
    ServerStreams,
)

END = Flag.REMOTE_CLOSED | Flag.NO_DATA


def request(stream_id: int, flags: int = 0, payload: bytes = b"") -> Frame:
    body = request_head("S", "M", len(payload)) + payload
    return Frame(stream_id, FrameType.REQUEST, flags, memoryview(body), len(body))


def data(stream_id: int, body: bytes = b"x", flags: int = 0) -> Frame:
    return Frame(stream_id, FrameType.DATA, flags, memoryview(body), len(body))


def refused(streams: ServerStreams, frame: Frame) -> Code:
    (event,) = streams.receive(frame)
    assert isinstance(event, Refusal)
    assert event.stream_id == frame.stream_id
    return event.code


def test_ids_are_odd_and_rise() -> None:
    streams = ServerStreams()
    assert isinstance(streams.receive(request(5))[0], Call)
    assert refused(streams, request(2)) is Code.INVALID_ARGUMENT
    assert refused(streams, request(5)) is Code.INVALID_ARGUMENT
    assert refused(streams, request(3)) is Code.INVALID_ARGUMENT
    assert isinstance(streams.receive(request(7))[0], Call)


def test_unknown_types_are_ignored() -> None:
    streams = ServerStreams()
    for kind in (0, FrameType.RESPONSE, 4, 255):
        assert streams.receive(Frame(1, kind, 0, memoryview(b"junk"), 4)) == []
    assert isinstance(streams.receive(request(1))[0], Call)


def test_a_request_that_cannot_be_read() -> None:
    streams = ServerStreams()
    frame = Frame(1, FrameType.REQUEST, 0, memoryview(b"\xff"), 1)
    assert refused(streams, frame) is Code.INVALID_ARGUMENT
    assert len(streams) == 0
    assert refused(streams, request(1)) is Code.INVALID_ARGUMENT  # the id is used up


def test_client_streaming() -> None:
    streams = ServerStreams()
    (call,) = streams.receive(request(1, Flag.REMOTE_OPEN))
    assert isinstance(call, Call)
    assert call.client_streams
    (message,) = streams.receive(data(1, b"one"))
    assert isinstance(message, Message)
    assert bytes(message.payload) == b"one"
    assert streams.receive(data(1, b"", Flag.NO_DATA)) == []
    assert streams.receive(data(1, b"", END)) == [Closed(1)]
    assert refused(streams, data(1)) is Code.INVALID_ARGUMENT


def test_an_empty_data_frame_is_an_empty_message() -> None:
    streams = ServerStreams()
    streams.receive(request(1, Flag.REMOTE_OPEN))
    assert streams.receive(data(1, b"")) == [Message(1, memoryview(b""))]


def test_the_closing_frame_carries_no_data() -> None:
    streams = ServerStreams()
    streams.receive(request(1, Flag.REMOTE_OPEN))
    assert refused(streams, data(1, b"x", Flag.REMOTE_CLOSED)) is Code.INVALID_ARGUMENT


def test_data_needs_an_open_stream() -> None:
    streams = ServerStreams()
    assert refused(streams, data(1)) is Code.INVALID_ARGUMENT
    streams.receive(request(3))
    assert refused(streams, data(3)) is Code.INVALID_ARGUMENT
    streams.receive(request(5, Flag.REMOTE_OPEN))
    streams.finish(5)
    assert refused(streams, data(5)) is Code.INVALID_ARGUMENT


def test_limits() -> None:
    streams = ServerStreams(max_streams=2, max_held=100)
    assert refused(streams, request(1, 0, bytes(200))) is Code.RESOURCE_EXHAUSTED
    streams.receive(request(3, 0, bytes(60)))
    assert refused(streams, request(5, 0, bytes(60))) is Code.RESOURCE_EXHAUSTED
    streams.receive(request(7))
    assert refused(streams, request(9)) is Code.RESOURCE_EXHAUSTED
    streams.finish(3)
    streams.finish(3)
    assert len(streams) == 1
    assert isinstance(streams.receive(request(11, 0, bytes(60)))[0], Call)


def test_too_long() -> None:
    streams = ServerStreams()
    assert refused(streams, Frame(1, FrameType.REQUEST, 0, None, 5 << 20)) is (
        Code.RESOURCE_EXHAUSTED
    )


def test_client_answers() -> None:
    streams = ClientStreams()
    assert (streams.open(), streams.open()) == (1, 3)
    body = memoryview(response_head(5, "gone", 0))
    (answer,) = streams.receive(Frame(3, FrameType.RESPONSE, 0, body, len(body)))
    assert isinstance(answer, Answer)
    assert (answer.response.code, answer.response.message) == (5, "gone")
    streams.finish(3)
    assert streams.receive(Frame(3, FrameType.RESPONSE, 0, body, len(body))) == []
    assert streams.receive(data(99)) == []


def test_client_stream_messages() -> None:
    streams = ClientStreams()
    streams.open()
    assert streams.receive(data(1, b"a")) == [Message(1, memoryview(b"a"))]
    last = streams.receive(data(1, b"z", Flag.REMOTE_CLOSED))
    assert last == [Message(1, memoryview(b"z")), Closed(1)]
    assert streams.receive(data(1, b"", END)) == [Closed(1)]
    assert streams.receive(Frame(1, 9, 0, memoryview(b""), 0)) == []


def test_client_gets_junk() -> None:
    streams = ClientStreams()
    streams.open()
    (event,) = streams.receive(Frame(1, FrameType.RESPONSE, 0, memoryview(b"\xff"), 1))
    assert isinstance(event, Refusal)
    (too_long,) = streams.receive(Frame(1, FrameType.RESPONSE, 0, None, 5 << 20))
    assert isinstance(too_long, Refusal)
    assert too_long.code is Code.RESOURCE_EXHAUSTED


def test_client_ids_run_out() -> None:
    streams = ClientStreams()
    streams._next_id = LAST_ID
    assert streams.open() == LAST_ID
    assert streams.open() is None


FRAMES = st.builds(
    lambda stream_id, kind, flags, body: Frame(
        stream_id, kind, flags, None if body is None else memoryview(body), len(body or b"")
    ),
    st.integers(0, 9),
    st.integers(0, 5),
    st.integers(0, 255),
    st.none() | st.binary(max_size=30) | st.just(request_head("S", "M", 0)),
)


@given(st.lists(st.tuples(FRAMES, st.booleans()), max_size=60))
def test_no_order_of_frames_breaks_the_books(steps: list[tuple[Frame, bool]]) -> None:
    server, client = ServerStreams(max_streams=3), ClientStreams()
    client.open()
    for frame, finish in steps:
        for event in server.receive(frame):
            assert event.stream_id == frame.stream_id
            if isinstance(event, Message | Closed):
                assert event.stream_id in server
        for heard in client.receive(frame):
            assert heard.stream_id in client
        if finish:
            server.finish(frame.stream_id)
        assert len(server) <= 3
    for stream_id in range(10):
        server.finish(stream_id)
    assert server._held == 0
