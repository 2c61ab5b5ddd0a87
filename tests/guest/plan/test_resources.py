"""OCI resources as cgroup v2 files."""

from __future__ import annotations

from typing import Any

import pytest

from shims.core.errors import InputError
from shims.guest.plan import compile_update


def files(resources: dict[str, Any]) -> dict[str, str]:
    return {write.file: write.value for write in compile_update(resources)}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, {}),
        ({"memory": {"limit": 1 << 27}}, {"memory.max": "134217728"}),
        ({"memory": {"limit": -1}}, {"memory.max": "max"}),
        (
            {"memory": {"limit": 100, "swap": 150, "reservation": 50}},
            {"memory.max": "100", "memory.swap.max": "50", "memory.low": "50"},
        ),
        (
            {"memory": {"limit": 100, "swap": 100}},
            {"memory.max": "100", "memory.swap.max": "0"},
        ),
        ({"memory": {"limit": 100, "swap": -1}}, {"memory.max": "100", "memory.swap.max": "max"}),
        ({"cpu": {"shares": 2}}, {"cpu.weight": "1"}),
        ({"cpu": {"shares": 1024}}, {"cpu.weight": "39"}),
        ({"cpu": {"shares": 262144}}, {"cpu.weight": "10000"}),
        ({"cpu": {"shares": 1 << 40}}, {"cpu.weight": "10000"}),
        ({"cpu": {"quota": 50000, "period": 100000}}, {"cpu.max": "50000 100000"}),
        ({"cpu": {"quota": 50000}}, {"cpu.max": "50000 100000"}),
        ({"cpu": {"quota": -1}}, {"cpu.max": "max 100000"}),
        ({"cpu": {"period": 20000}}, {"cpu.max": "max 20000"}),
        ({"cpu": {"burst": 0}}, {"cpu.max.burst": "0"}),
        ({"cpu": {"idle": 1}}, {"cpu.idle": "1"}),
        ({"pids": {"limit": 7}}, {"pids.max": "7"}),
        ({"pids": {"limit": -1}}, {"pids.max": "max"}),
        ({"pids": {"limit": 0}}, {}),
        ({"blockIO": {"weight": 1000}}, {"io.bfq.weight": "1000", "io.weight": "10000"}),
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]},
            {"hugetlb.2MB.max": "4", "hugetlb.2MB.rsvd.max": "4"},
        ),
        (
            {"memory": {"limit": 100}, "unified": {"memory.high": "90", "cgroup.max.depth": "2"}},
            {"memory.max": "100", "memory.high": "90", "cgroup.max.depth": "2"},
        ),
    ],
)
def test_conversion(resources: dict[str, Any], expected: dict[str, str]) -> None:
    assert files(resources) == expected


def test_unified_has_the_last_word() -> None:
    writes = compile_update({"unified": {"memory.max": "5"}, "memory": {"limit": 9}})
    assert [write.value for write in writes] == ["9", "5"]


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"memory": {"swap": 5}}, "memory.swap"),
        ({"memory": {"limit": 9, "swap": 5}}, "memory.swap"),
        ({"memory": {"limit": "9"}}, "memory.limit"),
        ({"memory": {"limit": -2}}, "memory.limit"),
        ({"memory": []}, "memory"),
        ({"cpu": {"idle": 2}}, "cpu.idle"),
        ({"cpu": {"realtimeRuntime": 5}}, "cpu.realtimeRuntime"),
        ({"pids": {"limit": True}}, "pids.limit"),
        ({"blockIO": {"weight": 5}}, "blockIO.weight"),
        ({"blockIO": {"weightDevice": [{"major": 8}]}}, "blockIO.weightDevice"),
        ({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}, "hugepageLimits[0].pageSize"),
        ({"unified": {"../x": "1"}}, "unified"),
        ({"unified": {"cgroup.procs": "1"}}, "unified"),
        ({"unified": {"cgroup.freeze": "1"}}, "unified"),
        ({"unified": {"memory.max": 1}}, "unified.memory.max"),
        ({"rdma": {"mlx5": {"hcaHandles": 1}}}, "rdma"),
    ],
)
def test_refusals_name_the_field(resources: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        compile_update(resources)
    assert str(caught.value).startswith(f"linux.resources.{field}: got ")


def test_what_a_guest_may_lack_is_optional() -> None:
    resources = {
        "memory": {"limit": 1, "swap": 1},
        "blockIO": {"weight": 10},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
    }
    optional = {write.file for write in compile_update(resources) if write.optional}
    assert optional == {
        "memory.swap.max",
        "io.bfq.weight",
        "io.weight",
        "hugetlb.2MB.max",
        "hugetlb.2MB.rsvd.max",
    }
