"""The size of a VM."""

from __future__ import annotations

from typing import Any

import pytest

from shims.containerd.shim.config import Settings
from shims.containerd.shim.sizing import (
    DEFAULT_MEMORY_MIB,
    host_memory_mib,
    host_oom_score,
    size_vm,
)
from shims.core.errors import InputError

MIB = 1 << 20


def _limit(value: object) -> dict[str, Any]:
    return {"linux": {"resources": {"memory": {"limit": value}}}}


@pytest.mark.parametrize(
    ("spec", "memory"),
    [
        ({}, DEFAULT_MEMORY_MIB),
        ({"linux": None}, DEFAULT_MEMORY_MIB),
        (_limit(-1), DEFAULT_MEMORY_MIB),
        (_limit(0), DEFAULT_MEMORY_MIB),
        (_limit(100 * MIB), 100),
        (_limit(100 * MIB + 1), 101),
        (_limit(1 << 62), 4096),
        ({"annotations": {"io.kubernetes.cri.sandbox-memory": str(300 * MIB)}}, 300),
        ({"annotations": {"io.kubernetes.cri.sandbox-memory": "0"}}, DEFAULT_MEMORY_MIB),
    ],
)
def test_memory_follows_the_limit(spec: dict[str, Any], memory: int) -> None:
    size = size_vm(Settings(), spec, host_mib=4096)
    assert (size.vcpus, size.memory_mib) == (1, memory)


def test_an_explicit_size_wins() -> None:
    size = size_vm(Settings(vcpus=3, memory_mib=700), _limit(MIB), host_mib=4096)
    assert (size.vcpus, size.memory_mib) == (3, 700)


def test_an_explicit_size_above_the_host_is_refused() -> None:
    with pytest.raises(InputError, match="memory: got 5000"):
        size_vm(Settings(memory_mib=5000), {}, host_mib=4096)


@pytest.mark.parametrize("value", ["1g", True, 1.5, []])
def test_a_limit_that_is_no_number_is_named(value: object) -> None:
    with pytest.raises(InputError, match=r"linux\.resources\.memory\.limit"):
        size_vm(Settings(), _limit(value), host_mib=4096)


def test_the_hosts_memory() -> None:
    assert host_memory_mib() > 100


@pytest.mark.parametrize(
    ("process", "score"), [(None, 0), ({}, 0), ({"oomScoreAdj": 1000}, 1000),
                           ({"oomScoreAdj": -997}, -997)]
)  # fmt: skip
def test_the_vm_ranks_like_its_container(process: object, score: int) -> None:
    assert host_oom_score({"process": process}) == score


@pytest.mark.parametrize("score", [1001, -1001, "5", True])
def test_a_score_that_is_none_is_refused(score: object) -> None:
    with pytest.raises(InputError, match="oomScoreAdj"):
        host_oom_score({"process": {"oomScoreAdj": score}})
