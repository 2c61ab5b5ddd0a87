"""What a caller asks of the engine, and what it learns when a VM has ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from shims.core.errors import InputError, TargetError

if TYPE_CHECKING:
    from pathlib import Path

    from shims.guest.image import GuestImage

__all__ = [
    "RAM_TIERS_MIB",
    "Accelerator",
    "ExitReason",
    "MachineConfig",
    "MachineExit",
    "MachineType",
    "QemuUser",
    "StartFailed",
]

type_of_machine = ("microvm", "q35")
MachineType = Literal["microvm", "q35"]
Accelerator = Literal["kvm", "tcg"]
AcceleratorChoice = Literal["auto", "kvm", "tcg"]
TemplateUse = Literal["shared", "per-namespace", "off"]

RAM_TIERS_MIB = (2048, 8192, 32768, 131072, 524288)
"""Guest RAM comes in these sizes only. Unused RAM costs a clone nothing, so few templates serve
every memory limit, which the guest enforces by its cgroups; the kernel's page table (1.6 % of the
RAM) is what keeps the first tier small."""

QEMU_OVERHEAD_MIB = 512
"""What QEMU itself may take: translated code (128), heap, device state, buffers."""

RAM_HEADROOM_MIB = 192
"""What the guest needs beside its containers: kernel, page tables, void-init."""

LOWEST_UID = 1_000
HIGHEST_ID = 2**32 - 2
MOST_VCPUS = 64


@dataclass(frozen=True)
class QemuUser:
    """Unprivileged numeric ids for QEMU: one id per running VM, out of a range.

    VMs that share a user could signal and trace each other; with an id each they cannot, even
    when a guest has taken over its QEMU. The ids need no entry in /etc/passwd and must belong to
    nobody else. The default range lies above what systemd and common container tools hand out.
    """

    first: int = 1_962_934_272
    """First id of the range, user and group alike (0x75000000)."""
    count: int = 65_536

    def __post_init__(self) -> None:
        """Refuse ranges that contain a system user or end past the last id."""
        if not LOWEST_UID <= self.first <= HIGHEST_ID:
            raise InputError("user.first", self.first, f"{LOWEST_UID} to {HIGHEST_ID}")
        if not 1 <= self.count <= HIGHEST_ID - self.first + 1:
            raise InputError("user.count", self.count, f"1 to {HIGHEST_ID - self.first + 1}")


@dataclass(frozen=True)
class MachineConfig:
    """One VM to start. Frozen: two VMs from equal configurations are interchangeable."""

    image: GuestImage
    name: str
    """Unique on this host; names the VM's directory, cgroup and process."""
    state_dir: Path
    """The host's state directory (``shims.core.paths.state_dir()``): measured facts live there."""
    run_dir: Path
    """The host's runtime directory (``runtime_dir()``): the keeper's socket and the VM's own."""
    vcpus: int = 1
    memory_mib: int = 512
    """What the containers may use together; the VM's RAM is the next tier above."""
    machine: MachineType = "microvm"
    accelerator: AcceleratorChoice = "auto"
    template: TemplateUse = "shared"
    trust_domain: str = ""
    """VMs share a template, and with it the kernel's address layout, only with VMs of the same
    trust domain. With ``per-namespace`` the caller names the namespace in it."""
    cgroup: str | None = None
    """The OCI cgroupsPath (a path, or ``slice:prefix:name``) beside which the VM gets its own."""
    memory_limit: int | None = None
    """Bytes that QEMU's own cgroup may use; None leaves it to the groups above. Below
    ``whole_size`` a sound VM may be killed for it: a guest does not give back what it freed."""
    user: QemuUser | None = field(default_factory=QemuUser)
    """None runs QEMU as the caller, and so does every caller but root."""
    oom_score_adj: int | None = None
    """How readily the host's kernel ends this VM when memory is short; None keeps the caller's."""
    shares: bool = False
    """virtiofs will be plugged in: needs RAM that is shared with virtiofsd, and PCI."""
    tap: int | None = None
    """Descriptor of an open tap device (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR): the VM's NIC."""
    netns: str = ""
    """Path of a network namespace: the VM takes over its network, instead of a ``tap``."""
    qemu: str = "qemu-system-x86_64"
    hostname: str = ""
    machine_id: str = ""
    lonely_poweroff_ms: int = 10_000
    """The guest powers off after this long without a host."""
    boot_timeout: float = 60.0
    """Seconds from the start to the guest's hello."""
    kernel_args: tuple[str, ...] = field(default=())
    """Appended to the kernel command line (tests, debugging); part of the template's key."""

    def __post_init__(self) -> None:
        """Refuse what cannot be started, by the name of the field."""
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise InputError("name", self.name, "a file name")
        if not 1 <= self.vcpus <= MOST_VCPUS:
            raise InputError("vcpus", self.vcpus, f"1 to {MOST_VCPUS}")
        if not 1 <= self.memory_mib <= RAM_TIERS_MIB[-1] - RAM_HEADROOM_MIB:
            raise InputError(
                "memory_mib", self.memory_mib, f"1 to {RAM_TIERS_MIB[-1] - RAM_HEADROOM_MIB}"
            )
        if self.machine not in type_of_machine:
            raise InputError("machine", self.machine, " or ".join(type_of_machine))
        if self.boot_timeout <= 0:
            raise InputError("boot_timeout", self.boot_timeout, "a positive number of seconds")

    @property
    def ram_mib(self) -> int:
        """RAM of the VM: the smallest tier that leaves the guest its headroom."""
        wanted = self.memory_mib + RAM_HEADROOM_MIB
        return next(tier for tier in RAM_TIERS_MIB if tier >= wanted)

    @property
    def whole_size(self) -> int:
        """Bytes above which QEMU and its guest together never go unless something is wrong."""
        # The host's page tables for the RAM are charged, too: a 512th of it, rounded up well.
        return (self.ram_mib + self.ram_mib // 64 + QEMU_OVERHEAD_MIB) << 20

    @property
    def machine_type(self) -> MachineType:
        """virtiofs devices are plugged into PCI, which microvm does not have."""
        return "q35" if self.shares else self.machine


class ExitReason(StrEnum):
    """Why a VM is gone."""

    POWEROFF = "poweroff"
    """The guest switched itself off, as asked or because it was lonely."""
    STOPPED = "stopped"
    """We ended it."""
    PANIC = "panic"
    """The guest kernel gave up."""
    KILLED = "killed"
    """QEMU was ended by a signal that was not ours."""
    OOM = "oom"
    """The host's kernel killed QEMU for its cgroup's (or the host's) lack of memory."""
    GUEST_OOM = "guest_oom"
    """The guest kernel ran out of memory and gave up."""
    BOOT_HANG = "boot_hang"
    """No hello within the deadline; we ended it."""
    ERROR = "error"
    """QEMU gave up: bad option, refused device, internal error."""


@dataclass(frozen=True)
class MachineExit:
    """How a VM ended, for people (``detail``, ``console_tail``) and for code (``reason``)."""

    reason: ExitReason
    detail: str
    console_tail: list[str]
    status: int | None = None
    """Wait status of QEMU as of ``os.waitstatus_to_exitcode``: negative for a signal."""

    def __str__(self) -> str:
        """Return one line: reason, detail and the console's last words."""
        last = f" (console: {' | '.join(self.console_tail[-3:])})" if self.console_tail else ""
        return f"{self.reason}: {self.detail}{last}"


class StartFailed(TargetError):
    """A VM did not reach its hello. ``exit`` says what became of it."""

    def __init__(self, exit_: MachineExit, *, hint: str = "") -> None:
        super().__init__(f"the VM did not start: {exit_}", hint=hint)
        self.exit = exit_
