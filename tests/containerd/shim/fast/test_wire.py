"""Hand-made protobuf and JSON against the libraries that the start path cannot afford."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st

from protos.gen.containerd.runtime.bootstrap.v1.bootstrap_pb2 import (
    BootstrapParams,
    BootstrapResult,
    Extension,
    LogLevel,
)
from protos.gen.containerd.task.v3.task_pb2 import DeleteResponse
from protos.gen.containerd.types.introspection_pb2 import RuntimeInfo
from shims.containerd.shim import pb, quickjson
from shims.containerd.shim.bootstrap import read_bootstrap, render_answer
from shims.containerd.shim.delete import render_response
from shims.containerd.shim.exits import Exit
from shims.containerd.shim.info import render_info
from shims.containerd.shim.invocation import Invocation, parse_invocation

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_json_as_the_library_reads_it(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=1), f" \n{json.dumps(value)}\t"):
        assert quickjson.load(text) == json.loads(text)


@given(st.dictionaries(st.text(), st.text() | st.integers()))
def test_flat_json_is_json(value: dict[str, str | int]) -> None:
    line = quickjson.dump_flat(value)
    assert "\n" not in line
    assert json.loads(line) == value


@pytest.mark.parametrize(
    "text", ["", " ", "{", '{"a"', '{"a":}', "[1,]", "nul", "{} {}", '"\\x"', "[" * 100_000]
)
def test_no_json(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  any ValueError is the contract
        quickjson.load(text)


@given(st.text(max_size=30))
def test_any_text(text: str) -> None:
    try:
        ours = quickjson.load(text)
    except ValueError:
        return
    assert repr(ours) == repr(json.loads(text))


@given(st.binary(max_size=100))
def test_any_bytes_are_fields_or_a_value_error(data: bytes) -> None:
    try:
        list(pb.fields(data))
    except ValueError:
        return


def call_of(identifier: str = "c1", namespace: str = "n", **environ: str) -> Invocation:
    return parse_invocation(["-id", identifier, "-namespace", namespace, "start"], environ, "/")


@given(st.sampled_from(list(LogLevel.values())), st.text(max_size=20), st.binary(max_size=30))
def test_parameters(level: int, address: str, payload: bytes) -> None:
    option = AnyMessage(type_url="x", value=payload)
    params = BootstrapParams(
        instance_id="c1",
        namespace="n",
        log_level=level,  # type: ignore[arg-type]
        containerd_version="2.3",
        containerd_ttrpc_address=address,
        containerd_grpc_address=address[::-1],
        extensions=[Extension(value=option), Extension()],
        socket_dir="/sockets",
    )
    boot = read_bootstrap(call_of(), params.SerializeToString())
    assert boot.dialect == "protobuf"
    assert (boot.ttrpc_address, boot.grpc_address) == (address, address[::-1])
    assert boot.socket_dir == "/sockets"
    assert AnyMessage.FromString(boot.options) == option
    assert boot.debug == (level <= LogLevel.LOG_LEVEL_DEBUG)


@given(st.binary(max_size=60))
def test_whatever_comes_in_there_is_a_dialect(data: bytes) -> None:
    assert read_bootstrap(call_of(), data).dialect == "address"
    assert read_bootstrap(call_of(MAX_SHIM_VERSION="2"), data).dialect == "json"


def test_answers() -> None:
    result = BootstrapResult.FromString(render_answer("protobuf", "unix:///s"))
    assert result == BootstrapResult(version=3, address="unix:///s", protocol="ttrpc")
    assert json.loads(render_answer("json", "unix:///s"))["version"] == 2
    assert render_answer("address", "unix:///s") == b"unix:///s"


@given(st.integers(0, 2**31), st.integers(0, 255), st.integers(0, 2**62))
def test_delete_response(pid: int, status: int, at_ns: int) -> None:
    data = render_response(Exit("c", "", pid, status, at_ns))
    response = DeleteResponse.FromString(data)
    assert (response.pid, response.exit_status) == (pid, status)
    assert response.exited_at.ToNanoseconds() == at_ns


def test_info() -> None:
    options = AnyMessage(type_url="runtimeoptions.v1.Options", value=b"\x0a\x01x")
    info = RuntimeInfo.FromString(render_info(options.SerializeToString()))
    assert info.name == "io.containerd.voidbox.v2"
    assert info.version.version
    assert info.options == options
    assert info.features.type_url.endswith("/features/Features")
    features = json.loads(info.features.value)
    assert features["linux"]["cgroup"]["v2"] is True
    # Promising it would make containerd hand us user namespaces that we do not make.
    assert "user" not in features["linux"]["namespaces"]


@pytest.mark.parametrize("junk", [b"", b"\xff", b"no options at all"])
def test_info_without_readable_options(junk: bytes) -> None:
    assert not RuntimeInfo.FromString(render_info(junk)).HasField("options")


def test_the_version_is_that_of_the_project() -> None:
    import tomllib
    from pathlib import Path

    from shims.containerd.shim.info import VERSION

    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())
    assert project["project"]["version"] == VERSION


def test_features_are_what_the_launch_plan_carries_out() -> None:
    from shims.containerd.shim.features import FEATURES
    from shims.guest.plan import capabilities, namespaces, options, seccomp

    features = json.loads(FEATURES)
    known = {*options._SET, *options._CLEAR, *options.PROPAGATIONS, *options._RECURSIVE}
    assert features["mountOptions"] == sorted(known)
    linux = features["linux"]
    assert linux["namespaces"] == sorted(namespaces._KINDS)
    assert linux["capabilities"] == sorted(capabilities.CAPABILITIES)
    assert linux["seccomp"]["actions"] == sorted(seccomp._ACTIONS)
    assert linux["seccomp"]["operators"] == sorted(seccomp._OPERATORS)
    assert linux["seccomp"]["archs"] == sorted(seccomp._ARCHITECTURES)
    assert set(linux["seccomp"]["supportedFlags"]) <= set(seccomp.SECCOMP_FLAGS)
    assert "hooks" not in features
