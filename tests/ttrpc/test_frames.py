"""Serializing a frame yields bytes; reading the bytes, cut anywhere, yields the frame."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shims.ttrpc.frames import HEADER_SIZE, Flag, Frame, FrameReader, FrameType, frame_header

Plain = tuple[int, int, int, bytes | None]

IDS = st.integers(0, 2**32 - 1)
BYTES = st.integers(0, 255)
PLAIN = st.tuples(IDS, BYTES, BYTES, st.binary(max_size=300))


def plain(frame: Frame) -> Plain:
    body = None if frame.body is None else bytes(frame.body)
    return frame.stream_id, frame.type, frame.flags, body


def encode(frame: tuple[int, int, int, bytes]) -> bytes:
    stream_id, kind, flags, body = frame
    return frame_header(len(body), stream_id, kind, flags) + body


def read(reader: FrameReader, data: bytes, sizes: list[int]) -> list[Plain]:
    """Give ``data`` to the reader as a socket would: in pieces, into the reader's memory."""
    frames: list[Plain] = []
    at, turn = 0, 0
    while at < len(data):
        buffer = reader.buffer()
        assert len(buffer) > 0
        count = min(len(buffer), len(data) - at, sizes[turn % len(sizes)])
        buffer[:count] = data[at : at + count]
        frames += [plain(frame) for frame in reader.advance(count)]
        at += count
        turn += 1
    return frames


def test_header_as_on_the_wire() -> None:
    header = frame_header(0x01020304, 5, FrameType.DATA, Flag.REMOTE_CLOSED | Flag.NO_DATA)
    assert header == bytes.fromhex("01020304 00000005 03 05")
    assert len(header) == HEADER_SIZE


@given(st.lists(PLAIN), st.lists(st.integers(1, 400), min_size=1))
def test_round_trip(frames: list[tuple[int, int, int, bytes]], sizes: list[int]) -> None:
    data = b"".join(encode(frame) for frame in frames)
    assert read(FrameReader(), data, sizes) == frames
    assert [plain(frame) for frame in FrameReader().feed(data)] == frames


@pytest.mark.parametrize(
    "size", [0, 1, 32767, 32768, 32769, 65525, 65526, 65527, 70000, 1 << 20, 4 << 20]
)
@pytest.mark.parametrize("piece", [9, 4096, 65536, 1 << 22])
def test_sizes_around_the_buffers(size: int, piece: int) -> None:
    if size // piece > 20000:
        pytest.skip("nothing new, and slow")
    frames = [(1, 1, 0, b"a" * 20), (3, 2, 0, b"b" * size), (5, 3, 4, b""), (7, 1, 0, b"c" * 300)]
    data = b"".join(encode(frame) for frame in frames)
    assert read(FrameReader(), data, [piece]) == frames


@given(st.integers(101, 5000), st.lists(st.integers(1, 400), min_size=1))
def test_a_body_that_is_too_long_is_dropped(length: int, sizes: list[int]) -> None:
    frames = [(1, 1, 0, b"before"), (3, 1, 2, b"x" * length), (5, 1, 0, b"after")]
    data = b"".join(encode(frame) for frame in frames)
    expected: list[Plain] = [frames[0], (3, 1, 2, None), frames[2]]
    assert read(FrameReader(max_body=100), data, sizes) == expected


def test_memory_is_bounded_whatever_a_header_promises() -> None:
    reader = FrameReader()
    tracemalloc.start()
    try:
        reader.feed(frame_header(0xFFFFFFFF, 1, 1))
        for _ in range(200):
            assert reader.feed(bytes(1 << 16)) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@given(st.binary(max_size=2000), st.lists(st.integers(1, 100), min_size=1))
def test_any_bytes(data: bytes, sizes: list[int]) -> None:
    """Whatever comes, nothing is raised, and pieces make no difference."""
    assert read(FrameReader(500), data, sizes) == read(FrameReader(500), data, [2000])
