"""Generated gRPC code runs on ttrpc unchanged."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import Int64Value, StringValue

from protos.gen.containerd.task.v3 import task_pb2
from shims.core.errors import DeadlineExceeded
from shims.ttrpc.adapters import ServicerAdapter, StubAdapter
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

    from shims.ttrpc.client import Client
    from shims.ttrpc.server import Server

grpc = pytest.importorskip("grpc", reason="grpcio is a dependency of the developers only")
grpc_tools = pytest.importorskip("grpc_tools.protoc")

ECHO = """
syntax = "proto3";
package voidbox.test.adapters;
import "google/protobuf/wrappers.proto";
service Kinds {
  rpc One(google.protobuf.StringValue) returns (google.protobuf.StringValue);
  rpc Count(google.protobuf.Int64Value) returns (stream google.protobuf.Int64Value);
  rpc Sum(stream google.protobuf.Int64Value) returns (google.protobuf.Int64Value);
  rpc Chat(stream google.protobuf.StringValue) returns (stream google.protobuf.StringValue);
}
"""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return the generated module of a service with each kind of method."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "voidbox_kinds.proto").write_text(ECHO)
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    status = grpc_tools.main(
        ["protoc", f"-I{folder}", f"-I{well_known}", f"--python_out={folder}",
         f"--grpc_python_out={folder}", "voidbox_kinds.proto"]
    )  # fmt: skip
    assert status == 0
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("voidbox_kinds_pb2_grpc")
    finally:
        sys.path.remove(str(folder))


class Behaviour:
    """What the methods of Kinds do."""

    async def One(self, request: StringValue, context: Any) -> StringValue:
        if request.value == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        if request.value == "set":
            context.set_code(grpc.StatusCode.ALREADY_EXISTS)
            context.set_details("it is there")
        assert ("k", "v") in context.invocation_metadata()
        assert 0 < context.time_remaining() <= 5
        return StringValue(value=request.value[::-1])

    async def Count(self, request: Int64Value, context: Any) -> AsyncIterator[Int64Value]:
        for number in range(request.value):
            yield Int64Value(value=number)

    async def Sum(self, request_iterator: Any, context: Any) -> Int64Value:
        total = 0
        async for request in request_iterator:
            if request.value == ENOUGH:
                break
            total += request.value
        return Int64Value(value=total)

    async def Chat(self, request_iterator: Any, context: Any) -> AsyncIterator[StringValue]:
        async for request in request_iterator:
            if request.value == "abort":
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such word")
            if request.value == "end":
                return
            yield StringValue(value=request.value.upper())


@pytest.fixture
async def stub(kinds: ModuleType, server: Server, client: Client) -> Any:
    class Servicer(Behaviour, kinds.KindsServicer):  # type: ignore[name-defined, misc]
        pass

    kinds.add_KindsServicer_to_server(Servicer(), ServicerAdapter(server))
    return kinds.KindsStub(StubAdapter(client))


METADATA = (("k", "v"),)
ENOUGH = 99


async def numbers(*values: int, endless: bool = False) -> AsyncIterator[Int64Value]:
    for value in values:
        yield Int64Value(value=value)
    if endless:
        await asyncio.Event().wait()


async def collect(answers: Any) -> list[Any]:
    return [item.value async for item in answers]


async def words(*values: str, endless: bool = False) -> AsyncIterator[StringValue]:
    for value in values:
        yield StringValue(value=value)
    if endless:
        await asyncio.Event().wait()


async def test_unary(stub: Any) -> None:
    answer = await stub.One(StringValue(value="abc"), timeout=5, metadata=METADATA)
    assert answer.value == "cba"


@pytest.mark.parametrize(
    ("word", "code"), [("abort", Code.NOT_FOUND), ("set", Code.ALREADY_EXISTS)]
)
async def test_status(stub: Any, word: str, code: Code) -> None:
    with pytest.raises(RpcError) as caught:
        await stub.One(StringValue(value=word), timeout=5, metadata=METADATA)
    assert caught.value.code is code


async def test_server_streaming(stub: Any) -> None:
    answers = stub.Count(Int64Value(value=5), timeout=5)
    assert [item.value async for item in answers] == [0, 1, 2, 3, 4]


async def test_client_streaming(stub: Any) -> None:
    assert (await stub.Sum(numbers(0, 1, 2, 3, 4), timeout=5)).value == 10


async def test_an_early_answer_ends_the_sending(stub: Any) -> None:
    requests = numbers(3, ENOUGH, endless=True)
    assert (await asyncio.wait_for(stub.Sum(requests, timeout=None), 5)).value == 3


async def test_requests_of_a_plain_iterable(stub: Any) -> None:
    requests = [Int64Value(value=1), Int64Value(value=2)]
    assert (await stub.Sum(requests, timeout=5, metadata=None)).value == 3
    answers = stub.Chat(iter([StringValue(value="a")]), timeout=5, metadata=None)
    assert [item.value async for item in answers] == ["A"]


async def test_no_metadata_may_be_none(stub: Any) -> None:
    answers = stub.Count(Int64Value(value=2), timeout=5, metadata=None)
    assert [item.value async for item in answers] == [0, 1]
    with pytest.raises(RpcError, match="AssertionError"):  # it asks for some, and finds none
        await stub.One(StringValue(value="x"), timeout=5, metadata=None)


async def test_an_error_of_the_requests_is_the_callers(stub: Any, server: Server) -> None:
    async def broken() -> AsyncIterator[StringValue]:
        yield StringValue(value="a")
        raise LookupError("the next word")

    with pytest.raises(LookupError, match="the next word"):
        await stub.Sum(broken(), timeout=5)
    with pytest.raises(LookupError, match="the next word"):
        await collect(stub.Chat(broken(), timeout=5))
    await server.drain(timeout=5)
    assert server.calls == 0


async def test_bidi_with_an_iterable(stub: Any) -> None:
    assert [item.value async for item in stub.Chat(words("a", "b"), timeout=5)] == ["A", "B"]


async def test_bidi_ends_when_the_server_ends_it(stub: Any) -> None:
    async with asyncio.timeout(5):
        answers = stub.Chat(words("a", "end", endless=True), timeout=None)
        assert [item.value async for item in answers] == ["A"]


async def test_bidi_raises_what_the_server_answers(stub: Any) -> None:
    async with asyncio.timeout(5):
        answers = stub.Chat(words("a", "abort", endless=True), timeout=None)
        with pytest.raises(RpcError, match="no such word") as caught:
            await collect(answers)
    assert caught.value.code is Code.NOT_FOUND


async def test_bidi_has_a_deadline(stub: Any) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(DeadlineExceeded):
            await collect(stub.Chat(words(endless=True), timeout=0.05))


async def test_bidi_by_hand(stub: Any) -> None:
    async with stub.Chat(timeout=5) as call:
        await call.write(StringValue(value="x"))
        assert (await call.read()).value == "X"
        await call.done_writing()
        assert await call.read() is None


@pytest.mark.parametrize("method", ["One", "Count", "Sum", "Chat"])
async def test_what_nobody_wrote_is_unimplemented(
    kinds: ModuleType, server: Server, client: Client, method: str
) -> None:
    kinds.add_KindsServicer_to_server(kinds.KindsServicer(), ServicerAdapter(server))
    stub = kinds.KindsStub(StubAdapter(client))
    calls = {
        "One": lambda: stub.One(StringValue(), timeout=5),
        "Count": lambda: anext(stub.Count(Int64Value(), timeout=5)),
        "Sum": lambda: stub.Sum(numbers(1), timeout=5),
        "Chat": lambda: anext(aiter(stub.Chat(words("a"), timeout=5))),
    }
    with pytest.raises(RpcError, match="Method not implemented!") as caught:
        await calls[method]()
    assert caught.value.code is Code.UNIMPLEMENTED


async def test_a_coroutine_may_write_its_responses(
    kinds: ModuleType, server: Server, client: Client
) -> None:
    class Writer(kinds.KindsServicer):  # type: ignore[name-defined, misc]
        async def Count(self, request: Int64Value, context: Any) -> None:
            for number in range(request.value):
                await context.write(Int64Value(value=number))
            context.set_code(grpc.StatusCode.ABORTED)

        async def Chat(self, request_iterator: Any, context: Any) -> None:
            async for request in request_iterator:
                await context.write(request)

    kinds.add_KindsServicer_to_server(Writer(), ServicerAdapter(server))
    stub = kinds.KindsStub(StubAdapter(client))
    answers = stub.Count(Int64Value(value=2), timeout=5)
    assert [(await anext(answers)).value, (await anext(answers)).value] == [0, 1]
    with pytest.raises(RpcError) as caught:
        await anext(answers)
    assert caught.value.code is Code.ABORTED
    assert [item.value async for item in stub.Chat(words("a", "b"), timeout=5)] == ["a", "b"]


async def test_the_task_service_of_containerd(server: Server, client: Client) -> None:
    """The committed stubs: what nobody wrote answers UNIMPLEMENTED, as grpc's servicers do."""
    from protos.gen.containerd.task.v3 import task_pb2_grpc

    class Task(task_pb2_grpc.TaskServicer):
        async def Kill(self, request: task_pb2.KillRequest, context: Any) -> Empty:
            return Empty()

    generated: Any = task_pb2_grpc
    generated.add_TaskServicer_to_server(Task(), ServicerAdapter(server))
    stub = generated.TaskStub(StubAdapter(client))
    assert await stub.Kill(task_pb2.KillRequest(id="c", signal=9), timeout=5) == Empty()
    with pytest.raises(RpcError) as caught:
        await stub.Checkpoint(task_pb2.CheckpointTaskRequest(id="c"), timeout=5)
    assert caught.value.code is Code.UNIMPLEMENTED
