"""The plan is pure: what it renders is kept in golden files, and read by people in review.

``VOID_SHIMS_REGEN=1 pytest tests/microvm/test_plan.py`` rewrites them.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from shims.microvm.plan import Boot, Fd, Hardware, Memory, Plan, needs_tsc, render

GOLDEN = Path(__file__).parent / "golden"
TSC = 2_596_152

CASES = {
    "microvm-tcg-boot": (Hardware("microvm", "tcg", 1, 2048), Memory.ANONYMOUS, Boot(TSC)),
    "microvm-tcg-template": (
        Hardware("microvm", "tcg", 1, 2048, disk_slots=True),
        Memory.SHARED,
        Boot(TSC),
    ),
    "microvm-tcg-clone": (
        Hardware("microvm", "tcg", 1, 2048, disk_slots=True),
        Memory.PRIVATE,
        None,
    ),
    "microvm-kvm-boot": (Hardware("microvm", "kvm", 2, 8192), Memory.ANONYMOUS, Boot()),
    "microvm-tcg-network": (
        Hardware("microvm", "tcg", 1, 2048, network=True),
        Memory.PRIVATE,
        None,
    ),
    "q35-tcg-boot": (Hardware("q35", "tcg", 1, 2048), Memory.SHARED, Boot(None, ("quiet",))),
    "q35-tcg-copy": (Hardware("q35", "tcg", 1, 2048), Memory.SHARED, None),
    "q35-kvm-network": (
        Hardware("q35", "kvm", 4, 32768, network=True),
        Memory.ANONYMOUS,
        Boot(),
    ),
}


def show(plan: Plan) -> str:
    """One option with its value per line."""
    lines: list[str] = []
    for argument in plan.arguments:
        if argument.startswith("-") or not lines:
            lines.append(argument)
        else:
            lines[-1] += f" {argument}"
    fds = " ".join(fd.name.lower() for fd in sorted(plan.fds))
    return "\n".join([*lines, f"descriptors: {fds}"]) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    hardware, memory, boot = CASES[name]
    shown = show(render(hardware, memory, boot, name="vm"))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("VOID_SHIMS_REGEN"):
        path.write_text(shown)
    assert shown == path.read_text()


@pytest.mark.parametrize("machine", ["microvm", "q35"])
@pytest.mark.parametrize("network", [False, True])
def test_a_clone_has_the_devices_of_its_template(machine: str, network: bool) -> None:
    hardware = Hardware(machine, "tcg", 1, 2048, network)  # type: ignore[arg-type]
    template = render(hardware, Memory.SHARED, Boot(TSC)).arguments
    clone = render(hardware, Memory.PRIVATE, None).arguments

    def machine_state(arguments: tuple[str, ...]) -> list[tuple[str, str]]:
        kept = ("-machine", "-cpu", "-smp", "-m", "-global", "-device", "-serial", "-chardev")
        return [pair for pair in itertools.pairwise(arguments) if pair[0] in kept]

    assert machine_state(template) == machine_state(clone)


def test_every_descriptor_that_a_plan_lists_is_mentioned() -> None:
    for hardware, memory, boot in CASES.values():
        plan = render(hardware, memory, boot)
        text = " ".join(plan.arguments)
        for fd in plan.fds - {Fd.STATE}:  # the state's number goes over QMP
            assert f"fd={fd:d}" in text or f"/fd/{fd:d}" in text


def test_a_clone_is_not_told_to_boot() -> None:
    arguments = render(Hardware("microvm", "tcg", 1, 2048), Memory.PRIVATE, None).arguments
    assert "-kernel" not in arguments
    assert "-append" not in arguments


def test_the_tsc_frequency_is_needed_by_microvm_under_tcg_only() -> None:
    needed = {
        (machine, accelerator): needs_tsc(Hardware(machine, accelerator, 1, 2048))
        for machine in ("microvm", "q35")
        for accelerator in ("kvm", "tcg")
    }
    assert [pair for pair, needs in needed.items() if needs] == [("microvm", "tcg")]
    with pytest.raises(ValueError, match="TSC"):
        render(Hardware("microvm", "tcg", 1, 2048), Memory.ANONYMOUS, Boot())


def test_qemu_is_confined_in_every_plan() -> None:
    for hardware, memory, boot in CASES.values():
        arguments = render(hardware, memory, boot).arguments
        sandbox = arguments[arguments.index("-sandbox") + 1]
        assert sandbox.startswith("on,")
        assert "spawn=deny" in sandbox
        assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(arguments)
