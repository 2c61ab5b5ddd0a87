"""``linux.resources``, which the spec writes in cgroup v1 terms, as cgroup v2 files.

Conversions: the OCI runtime spec names the v1 meaning, the kernel's Documentation/admin-guide/
cgroup-v2.rst the v2 one; where they differ in scale we do what the reference runtime does.
"""

from __future__ import annotations

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import InputError
from shims.guest.plan.reading import UINT64_MAX, Reader

__all__ = ["compile_resources"]

INT64_MAX = 2**63 - 1
_DEFAULT_PERIOD_US = 100_000

# v1 shares and weights against v2 weights.
_SHARES_LEAST, _SHARES_MOST = 2, 262_144
_WEIGHT_MOST = 10_000


def _write(file: str, value: object, *, optional: bool = False) -> guest_pb2.CgroupWrite:
    return guest_pb2.CgroupWrite(file=file, value=str(value), optional=optional)


def _limit(value: int) -> object:
    return "max" if value < 0 else value


def _memory(memory: Reader) -> list[guest_pb2.CgroupWrite]:
    writes = []
    limit = memory.number("limit", 0, least=-1, most=INT64_MAX)
    swap = memory.number("swap", 0, least=-1, most=INT64_MAX)
    reservation = memory.number("reservation", 0, least=-1, most=INT64_MAX)
    if swap > 0 and limit <= 0:
        raise InputError(memory.at("swap"), swap, "a swap limit beside a memory limit")
    if 0 < swap < limit:
        raise InputError(memory.at("swap"), swap, f"at least the memory limit, {limit}")
    # Swap first: shrinking it may need what the old memory limit still allows.
    if swap != 0:
        # v1 counts memory and swap together, v2 swap alone. A VM usually has no swap at all.
        alone = swap - limit if swap > 0 else -1
        writes.append(_write("memory.swap.max", _limit(alone), optional=True))
    if limit != 0:
        writes.append(_write("memory.max", _limit(limit)))
    if reservation != 0:
        writes.append(_write("memory.low", _limit(reservation)))
    return writes


def _cpu(cpu: Reader) -> list[guest_pb2.CgroupWrite]:
    writes = []
    shares = cpu.number("shares", 0, most=UINT64_MAX)
    quota = cpu.number("quota", 0, least=-1, most=INT64_MAX)
    period = cpu.number("period", 0, most=UINT64_MAX)
    idle = cpu.number("idle", most=1)
    if cpu.has("idle"):
        writes.append(_write("cpu.idle", idle))
    if shares != 0:
        bounded = min(max(shares, _SHARES_LEAST), _SHARES_MOST)
        weight = 1 + (bounded - _SHARES_LEAST) * (_WEIGHT_MOST - 1) // (
            _SHARES_MOST - _SHARES_LEAST
        )
        # An idle group has no weight of its own; the kernel then refuses one.
        writes.append(_write("cpu.weight", weight, optional=idle == 1))
    if quota != 0 or period != 0:
        value = quota if quota > 0 else "max"
        writes.append(_write("cpu.max", f"{value} {period or _DEFAULT_PERIOD_US}"))
    if cpu.has("burst"):
        writes.append(_write("cpu.max.burst", cpu.number("burst", most=UINT64_MAX)))
    return writes


def _pids(pids: Reader) -> list[guest_pb2.CgroupWrite]:
    limit = pids.number("limit", 0, least=-1, most=INT64_MAX)
    return [_write("pids.max", _limit(limit))] if limit != 0 else []


def _block_io(block: Reader) -> list[guest_pb2.CgroupWrite]:
    weight = block.number("weight", 0, most=1000)
    if weight == 0:
        return []
    if weight < 10:
        raise InputError(block.at("weight"), weight, "a weight from 10 to 1000")
    # BFQ takes the v1 scale as it is; io.weight spreads 10..1000 over 1..10000. Which of the two
    # a guest's kernel has depends on its I/O scheduler.
    spread = 1 + (weight - 10) * (_WEIGHT_MOST - 1) // 990
    return [
        _write("io.bfq.weight", weight, optional=True),
        _write("io.weight", spread, optional=True),
    ]


def _huge_pages(resources: Reader) -> list[guest_pb2.CgroupWrite]:
    writes = []
    for limit in resources.objects("hugepageLimits"):
        size = limit.text("pageSize")
        if not size.endswith("B") or not size[:-2].isdigit() or size[-2] not in "KMG":
            raise InputError(limit.at("pageSize"), size, "a page size such as 2MB")
        bound = limit.number("limit", most=UINT64_MAX)
        # The host's page sizes need not be the guest's; a limit on pages that do not exist holds.
        writes.append(_write(f"hugetlb.{size}.max", bound, optional=True))
        writes.append(_write(f"hugetlb.{size}.rsvd.max", bound, optional=True))
    return writes


def _unified(resources: Reader) -> list[guest_pb2.CgroupWrite]:
    writes = []
    for file, value in resources.mapping("unified").items():
        controller = file.partition(".")[0]
        if "/" in file or not controller or controller == file or len(file) > 63:
            raise InputError(resources.at("unified"), file, "the name of a cgroup v2 file")
        if controller == "cgroup" and file not in ("cgroup.max.depth", "cgroup.max.descendants"):
            raise InputError(resources.at("unified"), file, "a controller's file, not cgroup.*")
        writes += [_write(file, line) for line in value.splitlines()]
    return writes


def compile_resources(resources: Reader) -> list[guest_pb2.CgroupWrite]:
    """Return the writes in order; ``unified`` comes last, because it says it in v2's own terms."""
    return [
        *_memory(resources.get("memory")),
        *_cpu(resources.get("cpu")),
        *_pids(resources.get("pids")),
        *_block_io(resources.get("blockIO")),
        *_huge_pages(resources),
        *_unified(resources),
    ]
