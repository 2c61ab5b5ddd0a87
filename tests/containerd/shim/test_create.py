"""What Create and Update read before the VM is asked: sizes, options, limits."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from google.protobuf import any_pb2

from protos.gen.runtimeoptions.v1 import options_pb2
from shims.containerd.shim import create
from shims.containerd.shim.attach import machine_name
from shims.microvm.cgroup import builder_name
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.containerd.shim.harness import NAMESPACES
from tests.fakes.guest import FakeGuest

if TYPE_CHECKING:
    from tests.containerd.shim.harness import FakeShim

MIB = 1 << 20


def _resources(limit: object) -> any_pb2.Any:
    return any_pb2.Any(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        value=json.dumps({"memory": {"limit": limit}}).encode(),
    )


async def test_runtime_options_size_the_vm(fake: FakeShim) -> None:
    body = options_pb2.Options(config_body=b"memory = '1Gi'").SerializeToString()
    options = any_pb2.Any(type_url="runtimeoptions.v1.Options", value=body)
    bundle = fake.shim.bundle("c", "true")
    await fake.call("Create", id="c", bundle=str(bundle), options=options)
    assert fake.engine.last.config.memory_mib == 1024


async def test_create_never_says_not_found(fake: FakeShim) -> None:
    """To containerd that word is about the task."""
    body = options_pb2.Options(config_path="/no/such/file").SerializeToString()
    options = any_pb2.Any(type_url="runtimeoptions.v1.Options", value=body)
    bundle = fake.shim.bundle("c", "true")
    with pytest.raises(RpcError, match="no such configuration file") as caught:
        await fake.call("Create", id="c", bundle=str(bundle), options=options)
    assert caught.value.code is Code.FAILED_PRECONDITION


async def test_not_found_in_the_guest_is_no_missing_task(
    fake: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> int:
        raise RpcError(Code.NOT_FOUND, "step 3: /lower is not there")

    monkeypatch.setattr(FakeGuest, "create_container", refuse)
    with pytest.raises(RpcError, match="step 3") as caught:
        await fake.shim.create("c", "true")
    assert caught.value.code is Code.FAILED_PRECONDITION


async def test_an_annotation_wins_and_nonsense_is_named(fake: FakeShim) -> None:
    with pytest.raises(RpcError, match=r"dev\.void-box\.vm\.memory: got 'plenty'") as caught:
        await fake.shim.create("c", "true", annotations={"dev.void-box.vm.memory": "plenty"})
    assert caught.value.code is Code.INVALID_ARGUMENT
    await fake.shim.create("c", "true", annotations={"dev.void-box.vm.memory": "2Gi"})
    assert fake.engine.last.config.memory_mib == 2048


async def test_options_of_other_runtimes_are_passed_over(fake: FakeShim) -> None:
    bundle = fake.shim.bundle("c", "true")
    options = any_pb2.Any(type_url="containerd.runc.v1.Options", value=b"\x08\x01")
    await fake.call("Create", id="c", bundle=str(bundle), options=options)


async def test_without_a_limit_the_vms_size_is_the_limit(fake: FakeShim) -> None:
    await fake.shim.create("c", "true")
    writes = {write.file: write.value for write in fake.guest.plans["c"].cgroup.writes}
    assert writes["memory.max"] == str(512 * MIB)


async def test_a_limit_above_the_vms_size_is_the_vms_size(fake: FakeShim) -> None:
    annotations = {"dev.void-box.vm.memory": "200Mi"}
    linux = {
        "namespaces": [{"type": kind} for kind in NAMESPACES],
        "resources": {"memory": {"limit": 1 << 30}},
    }
    await fake.shim.create("c", "true", annotations=annotations, linux=linux)
    writes = {write.file: write.value for write in fake.guest.plans["c"].cgroup.writes}
    assert writes["memory.max"] == str(200 * MIB)


@pytest.mark.parametrize("limit", [0, -1])
async def test_an_update_to_no_limit_is_the_vms_size(fake: FakeShim, limit: int) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.call("Update", id="c", resources=_resources(limit))
    assert fake.guest.updates[-1]["memory.max"] == str(512 * MIB)


@pytest.mark.parametrize("limit", [-2, "1Gi"])
async def test_a_limit_that_is_none_is_refused(fake: FakeShim, limit: object) -> None:
    await fake.shim.run("c", "sleep", "60")
    with pytest.raises(RpcError, match=r"memory\.limit") as caught:
        await fake.call("Update", id="c", resources=_resources(limit))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert not fake.guest.updates


async def test_all_steps_of_create_share_a_deadline(
    fake: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create, "_bound", lambda _: 0.3)
    fake.engine.gate = asyncio.Event()  # a boot that takes for ever
    with pytest.raises(RpcError, match="was not created within") as caught:
        await fake.shim.create("c", "true")
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert fake.supplies.made == fake.supplies.undone
    assert not fake.group.creating


async def test_a_container_that_came_too_late_is_forgotten_in_the_guest(
    fake: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create, "_GUEST_TIMEOUT", 0.2)
    await fake.shim.create("other", "sleep", "60")
    fake.guest.gates["create_container"] = asyncio.Event()
    with pytest.raises(RpcError) as caught:
        await fake.shim.create("c", "true")
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    await asyncio.wait_for(fake.guest.called("delete_process"), 5)


async def test_update_up_to_the_vms_size(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.call("Update", id="c", resources=_resources(256 * MIB))
    assert "update_cgroup" in fake.guest.calls
    with pytest.raises(RpcError, match="at most the VM's 512 MiB") as caught:
        await fake.call("Update", id="c", resources=_resources(1024 * MIB))
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("missing", "kind", "refused"),
    [
        ({"network"}, "", True),  # ctr run --net-host
        ({"network", "uts"}, "sandbox", True),  # a pod with hostNetwork
        ({"network", "uts", "pid", "ipc"}, "sandbox", True),  # … and all the others
        ({"network", "uts"}, "container", False),  # its sandbox decides
        ({"network", "uts", "pid", "ipc"}, "", False),  # a bare configuration
        ({"uts", "pid", "ipc"}, "", False),
    ],
)
async def test_the_hosts_network_is_refused(
    fake: FakeShim, missing: set[str], kind: str, refused: bool
) -> None:
    linux = {"namespaces": [{"type": name} for name in NAMESPACES if name not in missing]}
    annotations = {"io.kubernetes.cri.container-type": kind} if kind else {}
    if not refused:
        await fake.shim.create("c", "true", linux=linux, annotations=annotations)
        return
    with pytest.raises(RpcError, match=r"linux\.namespaces: got 'no network.*leave out") as caught:
        await fake.shim.create("c", "true", linux=linux, annotations=annotations)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert not fake.engine.machines


async def test_what_has_no_effect_is_in_the_log_once(fake: FakeShim) -> None:
    everything = [{"allow": True, "access": "rwm"}]
    linux = {
        "namespaces": [{"type": kind} for kind in NAMESPACES if kind != "ipc"],
        "devices": [{"type": "b", "path": "/dev/sda", "major": 8, "minor": 0}],
        "resources": {"devices": everything},
    }
    await fake.shim.create("c", "true", linux=linux)
    said = [line for line in fake.recorder.lines if line.startswith("container c: ")]
    assert sorted(line.split(": ")[1] for line in said) == ["linux.devices", "linux.namespaces"]
    assert "/dev/sda" in said[0]
    assert "ipc" in said[1]


async def test_what_a_vm_cannot_do_is_refused_before_it_is_asked(fake: FakeShim) -> None:
    namespaces = [{"type": "network"}, {"type": "pid", "path": "/proc/1/ns/pid"}]
    with pytest.raises(RpcError, match=r"linux\.namespaces\[1\]\.path"):
        await fake.shim.create("c", "true", linux={"namespaces": namespaces})
    with pytest.raises(RpcError, match=r"mounts\[0\]\.source"):
        await fake.shim.create(
            "c", "true", mounts=[{"type": "bind", "source": "/dev/null", "destination": "/x"}]
        )
    assert not fake.engine.machines
    assert fake.supplies.made == fake.supplies.undone


def test_machine_names() -> None:
    assert machine_name("k8s.io", "abc").startswith("k8s.io-abc-")
    long = machine_name("k8s.io", "a" * 76)
    assert len(long) == 60
    assert long != machine_name("k8s.io", "a" * 75 + "b")
    assert machine_name("dev-eu", "web") != machine_name("dev", "eu-web")
    assert builder_name(machine_name("default", "web")) != machine_name("default", "web-template")
