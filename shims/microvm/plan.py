"""From what a VM shall be to QEMU's argument list. Pure: no I/O, no clock, no environment.

A template and its clones must agree on every device, option and size, or loading the saved state
fails (or, worse, succeeds). So both come from the same ``Hardware`` through ``render``, and the
template's key is a hash over what ``render`` returned: nothing can differ unnoticed.

Every descriptor has a fixed number in QEMU (``Fd``); the launcher puts it there. What differs by
machine type and by accelerator stands in two tables below, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shims.microvm.config import Accelerator, MachineType

__all__ = [
    "DISK_BUS",
    "DISK_SLOTS",
    "LINK_PORT",
    "SHARE_PORTS",
    "SLOT_BYTES",
    "Boot",
    "DiskSlot",
    "Fd",
    "Hardware",
    "Memory",
    "Plan",
    "render",
]

LINK_PORT = "dev.void-box.guest.0"
"""Name of the virtio-serial port that carries the guest link."""
DISK_BUS = "scsi0.0"
"""SCSI bus that disks are plugged into."""
SLOT_BYTES = 1 << 44
"""Size of the disks in slots as the guest sees them: the largest that may come."""
SHARE_PORTS = tuple(f"share{n}" for n in range(8))
"""PCI ports that virtiofs devices are plugged into, one each. A clone pays about a MiB for each."""
NETWORK_MAC = "02:76:6f:69:64:00"
"""MAC of the NIC at boot. Locally administered; the guest takes the pod's MAC by netlink later."""


@dataclass(frozen=True)
class DiskSlot:
    """A disk that the guest knows before there is anything on it.

    A guest that finds a new disk executes more code than all the rest of a container's creation,
    and a fresh clone has to translate every bit of that. What is in the slot when a clone starts
    has only to be exchanged.
    """

    scsi_id: int
    readonly: bool
    empty: str
    """Name of the block node that is in the slot while no disk is."""


DISK_SLOTS = {
    f"slot-{access}{number}": DiskSlot(scsi_id, access == "r", f"empty-{access}{number}")
    for scsi_id, (access, number) in enumerate((("r", 0), ("r", 1), ("w", 0), ("w", 1)), 252)
}
"""By serial. Enough for two containers: an image and a writable disk each."""


class Fd(IntEnum):
    """Number of each descriptor in QEMU."""

    QMP = 3
    """Connected stream socket: the monitor."""
    LINK = 4
    """Listening stream socket: the guest link."""
    CONSOLE = 5
    """Connected stream socket: the serial console."""
    MEMORY = 6
    """memfd: the guest's RAM."""
    KERNEL = 7
    INITRAMFS = 8
    STATE = 9
    """A template's device state, at offset 0."""
    TAP = 10


class Memory(Enum):
    """Where the guest's RAM lives."""

    ANONYMOUS = "anonymous"
    SHARED = "shared"
    """In a memfd that others map too: a template being built, or a VM with virtiofs."""
    PRIVATE = "private"
    """Copy on write of a template's memfd."""


@dataclass(frozen=True)
class Hardware:
    """What must be equal in a template and its clones."""

    machine: MachineType
    accelerator: Accelerator
    vcpus: int
    ram_mib: int
    network: bool = False
    disk_slots: bool = False
    """Whether it has ``DISK_SLOTS``: worth the while in a template, whose guest finds them once."""


@dataclass(frozen=True)
class Boot:
    """How a kernel is booted; a clone has none of it."""

    tsc_khz: int | None = None
    """The host's TSC frequency, for machines that cannot measure it (see ``needs_tsc``)."""
    kernel_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """QEMU's arguments without its own name, and the descriptors that they mention."""

    arguments: tuple[str, ...]
    fds: frozenset[Fd]
    command_line: str
    """The kernel's; empty for a clone."""


@dataclass(frozen=True)
class _MachineTraits:
    option: str
    device_suffix: str
    globals: tuple[str, ...]
    kernel_args: tuple[str, ...]
    timer_args: dict[Accelerator, tuple[str, ...]]
    hotplug_ports: tuple[str, ...]


@dataclass(frozen=True)
class _AcceleratorTraits:
    boot: str
    clone: str
    cpu: str


_MACHINES: dict[MachineType, _MachineTraits] = {
    # acpi=on: Debian's kernel finds virtio-mmio devices in the DSDT only. rtc=on: without one the
    # kernel waits 2.1 s for it. Modern virtio-mmio: the legacy one lacks features and speed.
    "microvm": _MachineTraits(
        option="microvm,acpi=on,pcie=off,rtc=on,pit=off,pic=off,isa-serial=on,"
        "auto-kernel-cmdline=off,x-option-roms=off",
        device_suffix="device",
        globals=("virtio-mmio.force-legacy=false",),
        kernel_args=(),
        # Hardware-reduced ACPI has nothing to calibrate a TSC against: without these two the
        # kernel hangs under TCG. Under KVM, kvmclock gives the frequency.
        timer_args={"tcg": ("tsc_early_khz={tsc_khz}", "tsc=reliable"), "kvm": ()},
        hotplug_ports=(),
    ),
    "q35": _MachineTraits(
        option="q35,usb=off,smbus=off,sata=off,vmport=off",
        device_suffix="pci",
        globals=(),
        kernel_args=(),
        timer_args={"tcg": ("tsc=reliable", "no_timer_check"), "kvm": ()},
        hotplug_ports=SHARE_PORTS,
    ),
}

_ACCELERATORS: dict[Accelerator, _AcceleratorTraits] = {
    # The translation buffer is what an idle clone mostly consists of; 32 MiB holds a busy container
    # (16 makes processes start 2.5 times slower). A boot translates 33 MiB, most of it run once,
    # and would flush that. Without the fast string features the guest kernel copies eight bytes per
    # step instead of one, which is all the same to silicon but not to TCG: output of containers is
    # 2.5 to 4 times faster.
    "tcg": _AcceleratorTraits(
        boot="tcg,tb-size=128", clone="tcg,tb-size=32", cpu="max,erms=off,fsrm=off"
    ),
    "kvm": _AcceleratorTraits(boot="kvm", clone="kvm", cpu="host"),
}

_KERNEL_ARGS = (
    "console=ttyS0",
    "quiet",  # errors and a panic's text still reach the console
    "reboot=t",  # a triple fault is the reset that every machine type notices
    "panic=-1",
    "cryptomgr.notests=1",  # a quarter of a second of self tests
    "initcall_blacklist=init_kprobe_trace",
    "random.trust_cpu=on",
    # Without AppArmor, for which the guest has no profiles: its hooks are in the way of every file
    # that is opened, and under TCG cost a seventh of a container's creation.
    "lsm=landlock,lockdown,yama",
)

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def needs_tsc(hardware: Hardware) -> bool:
    """Whether ``Boot.tsc_khz`` must be given for this hardware."""
    return any("{tsc_khz}" in argument for argument in _timer_args(hardware))


def render(hardware: Hardware, memory: Memory, boot: Boot | None, *, name: str = "") -> Plan:
    """Return the plan for one QEMU: a boot, or with ``boot`` None one that awaits a saved state.

    ``name`` appears in the process list only.
    """
    fds = {Fd.QMP, Fd.LINK, Fd.CONSOLE}
    arguments = [
        *(["-name", name] if name else []),
        *_machine_arguments(hardware, clone=boot is None),
        *_memory_arguments(hardware, memory),
        *_device_arguments(hardware),
    ]
    if memory is not Memory.ANONYMOUS:
        fds.add(Fd.MEMORY)
    if hardware.network:
        fds.add(Fd.TAP)
    command_line = ""
    if boot is None:
        arguments += ["-incoming", "defer"]
        fds.add(Fd.STATE)
    else:
        command_line = _command_line(hardware, boot)
        arguments += ["-kernel", _path(Fd.KERNEL), "-initrd", _path(Fd.INITRAMFS)]
        arguments += ["-append", command_line]
        fds |= {Fd.KERNEL, Fd.INITRAMFS}
    return Plan(tuple(arguments), frozenset(fds), command_line)


def _path(fd: Fd) -> str:
    return f"/proc/self/fd/{fd:d}"


def _machine_arguments(hardware: Hardware, *, clone: bool) -> list[str]:
    machine = _MACHINES[hardware.machine]
    accelerator = _ACCELERATORS[hardware.accelerator]
    # Guest memory stays out of core dumps and out of the host's page merging.
    arguments = [
        "-machine",
        f"{machine.option},memory-backend=ram,mem-merge=off,dump-guest-core=off",
    ]
    arguments += ["-accel", accelerator.clone if clone else accelerator.boot]
    arguments += ["-cpu", accelerator.cpu]
    arguments += ["-smp", str(hardware.vcpus)]
    arguments += ["-m", f"{hardware.ram_mib}M"]
    arguments += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    arguments += ["-sandbox", _SANDBOX]
    for name in machine.globals:
        arguments += ["-global", name]
    return arguments


def _memory_arguments(hardware: Hardware, memory: Memory) -> list[str]:
    size = f"size={hardware.ram_mib}M"
    backend = f"memory-backend-file,id=ram,{size},mem-path={_path(Fd.MEMORY)}"
    match memory:
        case Memory.ANONYMOUS:
            return ["-object", f"memory-backend-ram,id=ram,{size}"]
        case Memory.SHARED:
            return ["-object", f"{backend},share=on"]
        case Memory.PRIVATE:
            # Nobody means to fill all of the RAM of all clones: do not reserve it.
            return ["-object", f"{backend},share=off,reserve=off"]


def _device_arguments(hardware: Hardware) -> list[str]:
    machine = _MACHINES[hardware.machine]
    suffix = machine.device_suffix
    arguments = ["-chardev", f"socket,id=qmp,fd={Fd.QMP:d}"]
    arguments += ["-mon", "chardev=qmp,mode=control"]
    arguments += ["-chardev", f"socket,id=console,fd={Fd.CONSOLE:d}"]
    arguments += ["-serial", "chardev:console"]
    arguments += ["-chardev", f"socket,id=link,fd={Fd.LINK:d},server=on,wait=off"]
    arguments += ["-device", f"virtio-serial-{suffix},id=serial0,max_ports=2"]
    arguments += ["-device", f"virtserialport,bus=serial0.0,chardev=link,name={LINK_PORT}"]
    arguments += ["-device", f"virtio-scsi-{suffix},id=scsi0,num_queues=1"]
    arguments += ["-object", "rng-builtin,id=rng0"]
    arguments += ["-device", f"virtio-rng-{suffix},id=rngdev0,rng=rng0"]
    if hardware.disk_slots:
        arguments += _slot_arguments()
    if hardware.network:
        arguments += ["-netdev", f"tap,id=net0,fd={Fd.TAP:d}"]
        arguments += ["-device", f"virtio-net-{suffix},id=nic0,netdev=net0,mac={NETWORK_MAC}"]
    for number, port in enumerate(machine.hotplug_ports):
        arguments += ["-device", f"pcie-root-port,id={port},chassis={number + 1},slot={number + 1}"]
    return arguments


def _slot_arguments() -> list[str]:
    """Disks without a medium, as far as QEMU goes; the guest sees enormous ones."""
    arguments: list[str] = []
    for name, slot in DISK_SLOTS.items():
        access = f"read-only={'on' if slot.readonly else 'off'}"
        arguments += ["-blockdev", f"null-co,node-name={slot.empty},size={SLOT_BYTES},{access}"]
        arguments += ["-blockdev", f"raw,node-name={name},file={slot.empty},{access}"]
        device = f"scsi-hd,id=disk-{name},drive={name},bus={DISK_BUS},scsi-id={slot.scsi_id}"
        arguments += ["-device", f"{device},serial={name},werror=report,rerror=report"]
    return arguments


def _timer_args(hardware: Hardware) -> tuple[str, ...]:
    return _MACHINES[hardware.machine].timer_args[hardware.accelerator]


def _command_line(hardware: Hardware, boot: Boot) -> str:
    if needs_tsc(hardware) and not boot.tsc_khz:
        raise ValueError(f"{hardware.machine} under {hardware.accelerator} needs the TSC frequency")
    timers = [argument.format(tsc_khz=boot.tsc_khz) for argument in _timer_args(hardware)]
    machine = _MACHINES[hardware.machine].kernel_args
    # void-init reads this one: it answers when that many disks are ready.
    slots = [f"void.disks={len(DISK_SLOTS)}"] if hardware.disk_slots else []
    return " ".join([*_KERNEL_ARGS, *machine, *timers, *slots, *boot.kernel_args])
