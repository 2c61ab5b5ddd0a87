"""Any config.json ends in a refusal that names the field, or in a container, not in a dead shim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from google.protobuf import any_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.gen.runtimeoptions.v1 import options_pb2
from shims.containerd.shim import daemon
from shims.containerd.shim.attach import LocalSupplies
from shims.containerd.shim.config import SYSTEM_CONFIG
from shims.containerd.shim.early import (
    GroupId,
    early_config,
    read_settings,
    read_spec,
)
from shims.containerd.shim.start import find_group
from shims.containerd.shim.volumes import classify_mounts
from shims.core.errors import InputError, ShimError
from shims.guest.plan import GuestSource, Rootfs, compile_plan, review
from shims.ttrpc.client import Client
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.containerd.shim.harness import NAMESPACES, Recorder, ShimUnderTest
from tests.containerd.shim.real import LAUNCHER

if TYPE_CHECKING:
    from shims.containerd.shim.daemon import Launch
    from shims.guest.image.find import GuestImage
    from tests.containerd.shim.harness import FakeShim

_GOOD: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {"args": ["true"], "cwd": "/", "oomScoreAdj": 0, "user": {"uid": 0}},
    "root": {"path": "rootfs", "readonly": False},
    "hostname": "void",
    "annotations": {"io.kubernetes.cri.sandbox-memory": "0", "dev.void-box.vm.vcpus": "1"},
    "mounts": [
        {"type": "proc", "source": "proc", "destination": "/proc", "options": ["nosuid"]},
        {"type": "bind", "source": "/tmp", "destination": "/x", "options": ["rbind", "ro"]},
    ],
    "linux": {
        "cgroupsPath": "/void-shims-tests/malformed",
        "namespaces": [{"type": kind} for kind in NAMESPACES],
        "resources": {"memory": {"limit": 1 << 26}, "cpu": {"shares": 2}, "devices": []},
        "devices": [{"type": "c", "path": "/dev/null", "major": 1, "minor": 3}],
    },
}
_LAYER = GuestSource(kind="disk", name="e-0123456789abcdef", fstype="erofs")

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["\0", "\ud800", "bind", "/tmp/a\0b", "..", "/" * 5000, "9" * 5000, "a:b:c", 10**4000, "²"]
    )
)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything in a configuration, itself included."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


@st.composite
def _configs(draw: st.DrawFn) -> Any:
    """A good configuration, in which one or two things were replaced by anything at all."""
    config = _GOOD
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(_places(config)))
        config = _replaced(config, place, draw(_ANYTHING))
    return config


def _write(directory: Path, config: Any) -> str:
    (directory / "rootfs").mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def _supplies(directory: Path) -> LocalSupplies:
    environ = {"VOID_SHIMS_STATE": str(directory), "VOID_SHIMS_RUN": str(directory / "run")}
    local = LocalSupplies(environ, cast("Launch", SimpleNamespace(resources=None)))
    local._images[""] = cast("GuestImage", SimpleNamespace())
    return local


_MALFORMED = [
    ({"mounts": [None]}, r"mounts\[0\]: got nothing; allowed: an object"),
    ({"mounts": {}}, "mounts: got a mapping of 0; allowed: a list"),
    ({"mounts": [{"type": "bind", "source": "/tmp/a\0b"}]}, r"mounts\[0\]\.source: .*NUL"),
    ({"mounts": [{"type": "bind", "source": "/tmp", "options": "ro"}]}, r"mounts\[0\]\.options: "),
    ({"root": "x"}, "root: got 'x'; allowed: an object"),
    ({"root": {"path": "\ud800"}}, r"root\.path: "),
    ({"annotations": [1]}, "annotations: got a list of 1; allowed: an object"),
    ({"annotations": {"a": 1}}, r"annotations\.a: got 1; allowed: a string"),
    ({"annotations": {"dev.void-box.vm.vcpus": "9" * 5000}}, r"dev\.void-box\.vm\.vcpus"),
    ({"annotations": {"dev.void-box.vm.memory": "9" * 5000}}, r"dev\.void-box\.vm\.memory"),
    ({"annotations": {"io.kubernetes.cri.sandbox-memory": "9" * 5000}}, "sandbox-memory"),
    ({"linux": []}, "linux: got a list of 0"),
    ({"linux": {"cgroupsPath": "a\0b"}}, r"linux\.cgroupsPath: .*NUL"),
    ({"linux": {"namespaces": [{"type": ["pid"]}]}}, r"linux\.namespaces\[0\]\.type: "),
    ({"linux": {"resources": {"memory": {"limit": "1"}}}}, r"memory\.limit: got '1'"),
    ({"process": 5}, "process: got 5"),
]


@pytest.mark.parametrize(("changes", "words"), _MALFORMED)
async def test_create_names_the_field(fake: FakeShim, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RpcError, match=words) as caught:
        await fake.shim.create("c", "true", **changes)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert fake.supplies.made == fake.supplies.undone
    await fake.shim.create("d", "true")


@pytest.mark.parametrize(
    "text",
    [b"", b"[" * 100_000, b"5", b"[]", b'{"a": "\0"}', b'{"a": "\xed\xa0\x80"}', b"\xff\xfe{\0"],
)
def test_what_is_no_configuration_at_all(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=r"config\.json"):
        read_spec(str(tmp_path))


@pytest.mark.parametrize("group", [5, [], ["a"], {"a": 1}, True, "a/b", "\0"])
def test_a_group_that_is_no_name(tmp_path: Path, group: object) -> None:
    _write(tmp_path, {"annotations": {"io.kubernetes.cri.sandbox-id": group}})
    if group:
        with pytest.raises(ValueError, match=r"sandbox-id: got .*allowed: an identifier"):
            find_group(str(tmp_path), "c")
    else:
        assert find_group(str(tmp_path), "c") == "c"


@settings(max_examples=300)
@given(config=_configs())
def test_any_configuration_is_a_refusal_or_a_plan(tmp_path: Path, config: Any) -> None:
    """All that Create makes of it before it asks the host or the VM for anything."""
    bundle = _write(tmp_path, config)
    supplies = _supplies(tmp_path)
    try:
        early_config(GroupId("tests", "c"), supplies, bundle, any_pb2.Any())
        spec = read_spec(bundle)
        kinds = {v.index: _LAYER for v in classify_mounts(spec, bundle)}
        compile_plan(spec, container_id="c", rootfs=Rootfs(layers=(_LAYER,)), sources=kinds)
        review(spec)
    except ShimError:
        pass


def test_an_unharmed_configuration_is_a_plan(tmp_path: Path) -> None:
    """Else the fuzzing above would look at refusals only."""
    bundle = _write(tmp_path, _GOOD)
    config = early_config(GroupId("tests", "c"), _supplies(tmp_path), bundle, any_pb2.Any())
    assert config.shares
    sources = {v.index: _LAYER for v in classify_mounts(_GOOD, bundle)}
    compile_plan(_GOOD, container_id="c", rootfs=Rootfs(layers=(_LAYER,)), sources=sources)


@given(
    body=st.binary(max_size=40)
    | st.sampled_from(
        [b"vcpus = " + b"9" * 5000, b"vcpus = 0x" + b"f" * 5000, b"a = " + b"[" * 9999]
    )
    | st.sampled_from([b"boot_timeout = 0x" + b"f" * 4000, b"memory = '" + b"9" * 5000 + b"'"]),
    path=st.sampled_from(["", "\0", "/", "/dev/null", "x" * 5000]),
)
def test_any_runtime_options_are_settings_or_a_refusal(body: bytes, path: str) -> None:
    encoded = options_pb2.Options(config_body=body, config_path=path).SerializeToString()
    options = any_pb2.Any(type_url="runtimeoptions.v1.Options", value=encoded)
    try:
        read_settings({}, options)
    except ShimError:
        pass


def test_the_early_start_may_fail_with_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("shims.containerd.shim.early.early_config", fail)
    state = SimpleNamespace(read_options=lambda: b"")
    vm = SimpleNamespace(begin=lambda _: None)
    nothing = cast("Any", None)
    daemon._begin_early(cast("Any", vm), nothing, nothing, "", cast("Any", state))
    monkeypatch.setattr("shims.microvm.launcher.fork_launcher", fail)
    call = SimpleNamespace(
        namespace="n", id="c", group="", bundle=str(tmp_path), environ=os.environ
    )
    launch = daemon.Launch(cast("Any", call), str(tmp_path))
    assert launch.launcher is None
    assert capsys.readouterr().err.count("no such luck") == 2


async def _create_by_daemon(
    directory: Path, *before: str, **changes: Any
) -> tuple[RpcError, RpcError]:
    """Start a daemon as containerd does, and return what it answers to Create, asked twice."""
    shim = ShimUnderTest(cast("Client", None), directory, Recorder())
    bundle = shim.bundle("c", "true", **changes)
    environ = dict(os.environ, VOID_SHIMS_STATE=str(directory / "s"), VOID_SHIMS_VENV=sys.prefix)
    environ |= {"VOID_SHIMS_RUN": str(directory / "r"), "VOID_SHIMS_NURSERY": "off"}
    words = [*before, str(LAUNCHER), "-namespace", "tests", "-address", "/nowhere", "-id", "c",
             "-publish-binary", "/bin/true", "-bundle", str(bundle)]  # fmt: skip

    def run(action: str) -> str:
        done = subprocess.run(
            [*words, action], env=environ, cwd=bundle, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=30, check=True,
        )  # fmt: skip
        return done.stdout.decode(errors="replace")

    address = run("start").strip()
    try:
        shim.client = await Client.connect(address.removeprefix("unix://"))
        answers = []
        for _ in range(2):
            with pytest.raises(RpcError) as caught:
                await shim.call("Create", id="c", bundle=str(bundle))
            answers.append(caught.value)
        await shim.client.close()
    finally:
        run("delete")
    return answers[0], answers[1]


@pytest.mark.parametrize(
    "changes", [{"mounts": [None]}, {"root": "x"}, {"linux": {"cgroupsPath": "a\0b"}}]
)
async def test_the_daemon_lives_to_say_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    for answer in await _create_by_daemon(tmp_path, **changes):
        assert answer.code is Code.INVALID_ARGUMENT
        assert next(iter(changes)) in answer.message


@pytest.mark.root
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vcpu = 2", f"{SYSTEM_CONFIG}: vcpu: "),
        ("template = 'off'", "template: got 'shared'; allowed: off: this host's setting is off"),
    ],
)
async def test_the_daemon_reads_the_hosts_settings(tmp_path: Path, text: str, words: str) -> None:
    """Those of /etc: a mount namespace of the shim's own shows it ours, and nobody else."""
    config = Path(f"{tmp_path}/etc", *Path(SYSTEM_CONFIG).parts[2:])
    config.parent.mkdir(parents=True)
    config.write_text(text)
    show = 'mount -t overlay -o "lowerdir=$0:/etc" overlay /etc && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", show, f"{tmp_path}/etc")
    laxer = {"dev.void-box.vm.template": "shared"}
    for answer in await _create_by_daemon(tmp_path, *before, annotations=laxer):
        assert answer.code is Code.INVALID_ARGUMENT
        assert words in answer.message
