"""Specs as containerd writes them, and the plans that they become.

``pytest --regen`` rewrites the plans. The specs named ``ctr-*`` were written by ctr of that version
of containerd, those named ``cri-*`` have the shape of its CRI plugin's.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import text_format

from shims.guest.plan import GuestSource, Rootfs, compile_plan, review

if TYPE_CHECKING:
    from protos.gen.voidbox.guest.v1 import guest_pb2 as pb

GOLDEN = Path(__file__).parents[2] / "golden" / "plan"
SPECS = sorted(path.name.removesuffix(".spec.json") for path in GOLDEN.glob("*.spec.json"))

OPCODES = {
    0x61: "r{to} = ctx[{offset}]",
    0x55: "if r{to} != {value}: skip {offset}",
    0x15: "if r{to} == {value}: skip {offset}",
    0xB7: "r{to} = {value}",
    0x57: "r{to} &= {value:#x}",
    0x77: "r{to} >>= {value}",
    0xBF: "r{to} = r{source}",
    0x95: "return r0",
}


def disassemble(program: bytes) -> str:
    lines = []
    for code, registers, offset, value in struct.iter_unpack("<BBhi", program):
        to, source = registers & 15, registers >> 4
        lines.append("  " + OPCODES[code].format(to=to, source=source, offset=offset, value=value))
    return "\n".join(lines)


def sources_of(spec: dict[str, Any]) -> dict[int, GuestSource]:
    """Give each bind mount a place as the shim would: secrets pushed, data on a share."""
    places = {}
    for index, mount in enumerate(spec["mounts"]):
        if mount["type"] != "bind":
            continue
        if "volumes/kubernetes.io~csi" in mount["source"]:
            places[index] = GuestSource("share", f"s-{index}", path="mount")
        else:
            places[index] = GuestSource("pushed", f"/run/void/files/golden/{index}")
    return places


def compile_golden(name: str) -> tuple[dict[str, Any], pb.LaunchPlan]:
    spec = json.loads((GOLDEN / f"{name}.spec.json").read_text())
    layers = (GuestSource("disk", "e-0011223344556677", fstype="erofs"),)
    upper = GuestSource("disk", "u-0011223344556677", fstype="ext4")
    plan = compile_plan(
        spec,
        container_id="golden",
        rootfs=Rootfs(layers=layers, upper=upper if name.startswith("cri") else None),
        sources=sources_of(spec),
        network="vm" if name.startswith("cri") else "loopback",
        joins={f"/proc/4711/ns/{kind}": "77ab" for kind in ("ipc", "uts")},
    )
    return spec, plan


def render(name: str) -> str:
    spec, plan = compile_golden(name)
    device_filter = disassemble(plan.cgroup.device_filter)
    plan.cgroup.device_filter = b""
    if plan.process.seccomp:
        # What libseccomp makes of a profile differs from version to version.
        plan.process.seccomp = b"(compiled)"
    findings = "".join(f"# {finding.field}: {finding.reason}\n" for finding in review(spec))
    text = text_format.MessageToString(plan)
    return f"{findings}{text}# device filter\n{device_filter}".rstrip() + "\n"


@pytest.mark.parametrize("name", SPECS)
def test_plan_is_as_recorded(name: str, regen: bool) -> None:
    recorded = GOLDEN / f"{name}.plan.txt"
    text = render(name)
    if regen:
        recorded.write_text(text)
    assert text == recorded.read_text(), "run pytest --regen and read the difference"


def test_there_are_specs_of_every_supported_version() -> None:
    for version in ("ctr-1.6", "ctr-1.7", "ctr-2.1", "cri-1.7"):
        assert any(name.startswith(version) for name in SPECS)


def test_compiling_is_deterministic_and_leaves_the_spec_alone() -> None:
    for name in SPECS:
        before = json.loads((GOLDEN / f"{name}.spec.json").read_text())
        spec, plan = compile_golden(name)
        assert spec == before
        assert compile_golden(name)[1] == plan


def test_plans_end_with_the_pivot() -> None:
    for name in SPECS:
        _, plan = compile_golden(name)
        kinds = [step.WhichOneof("action") for step in plan.steps]
        assert kinds.index("pivot") == len(kinds) - 1
