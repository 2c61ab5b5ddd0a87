"""Which network a container gets: the configuration's, and the sandbox's for its members."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.containerd.shim.network import network_of, network_path
from shims.containerd.shim.resources import Resources
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.microvm.nets import make_pair

if TYPE_CHECKING:
    from pathlib import Path

    from tests.containerd.shim.harness import FakeShim

NETWORK = guest_pb2.Namespace.KIND_NETWORK
POD = "/run/netns/void-no-such-pod"


def joining(path: str) -> dict[str, Any]:
    return {"linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": path}]}}


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (joining(POD), POD),
        (joining(""), ""),
        ({"linux": {"namespaces": [{"type": "network"}]}}, ""),
        ({"linux": {"namespaces": [{"type": "pid", "path": "/proc/7/ns/pid"}]}}, ""),
        ({}, ""),
        ({"linux": {"namespaces": [{"type": "network", "path": 7}, "odd"]}}, ""),
        ({"linux": []}, ""),
    ],
)
def test_the_namespace_that_a_configuration_names(spec: dict[str, Any], path: str) -> None:
    assert network_path(spec) == path


def test_no_vm_takes_the_hosts_network() -> None:
    assert network_path(joining("/proc/self/ns/net")) == ""
    assert network_path(joining(f"/proc/{os.getpid()}/ns/net")) == ""


def test_what_the_vm_carries_is_what_a_container_may_join(tmp_path: Path) -> None:
    (tmp_path / "other-name").symlink_to(tmp_path / "pod")
    (tmp_path / "pod").touch()
    pod, sandbox = str(tmp_path / "pod"), "/proc/7/ns/net"
    for path in (pod, str(tmp_path / "other-name"), sandbox, ""):
        assert network_of(joining(path), pod, {sandbox: "s"}) == "vm"
    assert network_of(joining(str(tmp_path)), pod, {sandbox: "s"}) == "loopback"
    assert network_of(joining(sandbox), "", {sandbox: "s"}) == "loopback"
    assert network_of({}, "", {}) == "loopback"


async def test_the_container_is_in_the_network_of_its_vm(fake: FakeShim) -> None:
    fake.shim.spec = joining(POD)
    await fake.shim.create("c", "true")
    assert fake.engine.last.config.netns == POD
    assert NETWORK not in {each.kind for each in fake.guest.plans["c"].namespaces}


async def test_the_hosts_network_is_refused_by_name(fake: FakeShim) -> None:
    fake.shim.spec = joining("/proc/self/ns/net")
    with pytest.raises(RpcError, match=r"linux\.namespaces\[1\]\.path") as caught:
        await fake.shim.create("c", "true")
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_namespace_that_is_gone_needs_no_release(tmp_path: Path) -> None:
    resources = Resources(str(tmp_path))
    resources.add_network(POD)
    assert resources.held() == [("network", POD, 0)]
    assert resources.release_all(0.0) == []
    resources.drop(POD)
    assert resources.held() == []


@pytest.mark.root
async def test_a_network_that_comes_after_the_vm_is_refused_at_start(fake: FakeShim) -> None:
    """As ``ctr run --cni`` does it: links in the namespace of the pid that Create returned."""
    with make_pair() as pair:
        words = ("ip", "netns", "exec", pair.pod, "cat")
        inside = await asyncio.create_subprocess_exec(*words, stdin=PIPE, stdout=PIPE)
        assert inside.stdin is not None
        assert inside.stdout is not None
        inside.stdin.write(b"!")
        assert await asyncio.wait_for(inside.stdout.read(1), 10) == b"!"  # it is there by now
        await fake.shim.create("c", "true")
        fake.group.vm.pid = inside.pid
        with pytest.raises(RpcError, match=r"\(eth0\) was made after the VM") as caught:
            await fake.call("Start", id="c")
        assert caught.value.code is Code.UNIMPLEMENTED
        inside.stdin.close()
        await asyncio.wait_for(inside.wait(), 10)
