"""Generated gRPC code runs on ttrpc unchanged."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import Int64Value, StringValue

from protos.gen.containerd.task.v3 import task_pb2
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


@pytest.fixture
async def stub(kinds: ModuleType, server: Server, client: Client) -> Any:
    class Servicer(kinds.KindsServicer):  # type: ignore[name-defined, misc]
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
                total += request.value
            return Int64Value(value=total)

        async def Chat(self, request_iterator: Any, context: Any) -> AsyncIterator[StringValue]:
            async for request in request_iterator:
                yield StringValue(value=request.value.upper())

    kinds.add_KindsServicer_to_server(Servicer(), ServicerAdapter(server))
    return kinds.KindsStub(StubAdapter(client))


METADATA = (("k", "v"),)


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
    async def numbers() -> AsyncIterator[Int64Value]:
        for number in range(5):
            yield Int64Value(value=number)

    assert (await stub.Sum(numbers(), timeout=5)).value == 10


async def test_bidi_with_an_iterable(stub: Any) -> None:
    async def words() -> AsyncIterator[StringValue]:
        for word in ("a", "b"):
            yield StringValue(value=word)

    assert [item.value async for item in stub.Chat(words(), timeout=5)] == ["A", "B"]


async def test_bidi_by_hand(stub: Any) -> None:
    async with stub.Chat(timeout=5) as call:
        await call.write(StringValue(value="x"))
        assert (await call.read()).value == "X"
        await call.done_writing()
        assert await call.read() is None


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
