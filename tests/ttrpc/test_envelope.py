"""The hand-written coder agrees with the protobuf library about wire.proto."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from protos.gen.voidbox.ttrpc.v1.wire_pb2 import KeyValue, Request, Response, Status
from shims.ttrpc.envelope import (
    decode_request,
    decode_response,
    request_head,
    response_head,
)
from shims.ttrpc.errors import WireError

TEXT = st.text(max_size=40)
NANOS = st.integers(-(2**63), 2**63 - 1)


@given(TEXT, TEXT, st.none() | st.binary(max_size=300), NANOS, st.lists(st.tuples(TEXT, TEXT)))
def test_requests(
    service: str,
    method: str,
    payload: bytes | None,
    timeout_ns: int,
    metadata: list[tuple[str, str]],
) -> None:
    size = None if payload is None else len(payload)
    data = request_head(service, method, size, timeout_ns, metadata) + (payload or b"")
    message = Request(
        service=service,
        method=method,
        payload=payload or b"",
        timeout_nano=timeout_ns,
        metadata=[KeyValue(key=key, value=value) for key, value in metadata],
    )
    assert Request.FromString(data) == message

    back = decode_request(memoryview(data))
    assert (back.service, back.method, back.timeout_ns) == (service, method, timeout_ns)
    assert back.metadata == tuple(metadata)
    assert (None if back.payload is None else bytes(back.payload)) == payload

    again = decode_request(memoryview(message.SerializeToString()))
    assert again._replace(payload=None) == back._replace(payload=None)
    assert bytes(again.payload or b"") == (payload or b"")


@given(st.integers(0, 2**31 - 1), TEXT, st.binary(max_size=300))
def test_responses(code: int, message: str, payload: bytes) -> None:
    data = response_head(code, message, len(payload)) + payload
    parsed = Response.FromString(data)
    assert parsed.HasField("status")
    assert (parsed.status.code, parsed.payload) == (code, payload)
    assert parsed.status.message == (message if code else "")
    back = decode_response(memoryview(data))
    assert (back.code, bytes(back.payload)) == (code, payload)
    assert back.message == (message if code else "")


@given(st.integers(-(2**31), 2**31 - 1), TEXT, st.binary(max_size=100))
def test_responses_of_the_library(code: int, message: str, payload: bytes) -> None:
    """Details are skipped, fields may be absent, a code may be negative."""
    status = Status(code=code, message=message, details=[Any(type_url="x", value=b"y")])
    data = Response(status=status, payload=payload).SerializeToString()
    back = decode_response(memoryview(data))
    assert (back.code, back.message, bytes(back.payload)) == (code, message, payload)


def test_empty_messages() -> None:
    assert decode_request(memoryview(b"")) == ("", "", None, 0, ())
    assert decode_response(memoryview(b""))[:2] == (0, "")


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",  # no length
        b"\x0a\x05ab",  # cut off
        b"\x00",  # field 0
        b"\x0b",  # a group
        b"\x08" + b"\xff" * 10,  # a number that does not end
        b"\x0a\x02\xff\xfe",  # not UTF-8
        b"\x09\x01",  # half a fixed64
    ],
)
def test_junk_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_request(memoryview(data))


MIB4 = 4 << 20
BOMBS = {
    "unknown fields": b"\x30\x00" * (MIB4 // 2),
    "a name again and again": b"\x0a\x00" * (MIB4 // 2),
    "pairs of metadata": b"\x2a\x00" * 129,
    "fields of a pair": b"\x2a\x22" + b"\x0a\x00" * 17,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_request_of_very_many_fields_is_refused(bomb: str) -> None:
    with pytest.raises(WireError, match=r"too many|more than"):
        decode_request(memoryview(BOMBS[bomb]))


def test_a_response_of_very_many_fields_is_refused() -> None:
    status = b"\x08\x05" * (MIB4 // 2)
    for data in (BOMBS["unknown fields"], b"\x0a\x80\x80\x80\x02" + status):
        with pytest.raises(WireError, match="too many"):
            decode_response(memoryview(data))


def test_a_request_with_much_metadata_passes() -> None:
    metadata = tuple((f"key {n}", "x" * 100) for n in range(128))
    data = request_head("S", "M", 0, 0, metadata)
    assert decode_request(memoryview(data)).metadata == metadata


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Nothing but WireError is raised, and what the library reads, we read alike."""
    try:
        ours = decode_request(memoryview(data))
    except WireError:
        return
    try:
        theirs = Request.FromString(data)
    except DecodeError:
        return  # the library also looks into fields that we skip
    assert (ours.service, ours.method) == (theirs.service, theirs.method)
    assert ours.timeout_ns == theirs.timeout_nano
    assert bytes(ours.payload or b"") == theirs.payload
