"""Which accelerator a VM gets, and why.

A KVM device that opens proves little: inside many clouds it is there and cannot run an ordinary
kernel. So ``auto`` takes KVM only when the CPU offers vmx or svm and the device opens, the first
boot is watched, and a host on which KVM failed is remembered until it boots again or changes its
kernel. Asked for by name, KVM is used or the start fails.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shims.core.errors import NotSupported
from shims.microvm.tsc import boot_id

if TYPE_CHECKING:
    from pathlib import Path

    from shims.microvm.config import Accelerator, AcceleratorChoice

__all__ = [
    "KVM_WATCH_SECONDS",
    "ROOT_ONLY",
    "HostFacts",
    "Verdict",
    "choose",
    "device_groups",
    "explain",
    "memory_path",
    "read_host_facts",
    "remember_failure",
]

log = logging.getLogger("shims.microvm")

KVM_DEVICE = "/dev/kvm"
KVM_WATCH_SECONDS = 8.0
"""How long ``auto`` gives KVM to reach the guest's hello: ten times what a slow host needs."""
ROOT_ONLY = "root alone may open it, and QEMU runs as another user"
_FOR_ALL, _FOR_GROUP = 0o006, 0o060
_CPUINFO_BYTES = 16 * 1024
_HARDWARE_FLAGS = frozenset({"vmx", "svm"})


@dataclass(frozen=True)
class HostFacts:
    """What the host says about its ability to run KVM."""

    hardware: bool
    """The CPU offers vmx or svm."""
    device: str
    """Empty when /dev/kvm opens, else why it does not."""
    failed: str = ""
    """What KVM did wrong earlier in this boot of the host."""


@dataclass(frozen=True)
class Verdict:
    """The accelerator, whether its first boot has to be watched, and the reason in a sentence."""

    accelerator: Accelerator
    reason: str
    fall_back: bool = False
    """A boot that fails or hangs is repeated with TCG."""


def choose(wanted: AcceleratorChoice, facts: HostFacts) -> Verdict:
    """Return the accelerator to use. Raises ``NotSupported`` for a KVM that is not there."""
    if wanted == "tcg":
        return Verdict("tcg", "asked for by name")
    reason = explain(facts)
    if wanted == "kvm":
        if facts.device:
            raise NotSupported(f"KVM cannot be used: {facts.device}", hint="or use accelerator tcg")
        return Verdict("kvm", "asked for by name")
    if reason:
        return Verdict("tcg", reason)
    return Verdict("kvm", "the CPU offers virtualization and /dev/kvm opens", fall_back=True)


def explain(facts: HostFacts) -> str:
    """Return why KVM is not used by ``auto``; empty when it is."""
    if facts.device:
        return facts.device
    if not facts.hardware:
        return "/dev/kvm opens, but the CPU offers neither vmx nor svm"
    if facts.failed:
        return f"KVM failed earlier on this host: {facts.failed}"
    return ""


def read_host_facts(
    state_dir: Path, *, cpuinfo: str = "/proc/cpuinfo", device: str = KVM_DEVICE
) -> HostFacts:
    """Look at the CPU, the device and our own memory of this host. Cheap: three small reads."""
    with open(cpuinfo) as file:
        head = file.read(_CPUINFO_BYTES)
    flags = next((line for line in head.splitlines() if line.startswith("flags")), "")
    return HostFacts(
        hardware=not _HARDWARE_FLAGS.isdisjoint(flags.split()),
        device=_device_trouble(device),
        failed=_remembered_failure(state_dir),
    )


def remember_failure(state_dir: Path, reason: str) -> None:
    """Keep ``auto`` from trying KVM again on this host until it boots or changes its kernel.

    What cannot be written is not remembered, and logged: KVM is tried again then.
    """
    path = memory_path(state_dir)
    partial = path.with_suffix(".partial")
    try:
        # One name for all: what a killed writer left is used again, and a torn file is none.
        partial.write_text(json.dumps({**_host_key(), "reason": reason}))
        os.replace(partial, path)
    except OSError as error:
        log.warning("cannot remember that KVM failed: %s", error)


def memory_path(state_dir: Path) -> Path:
    """Return the file in which a failure of KVM is remembered; without it, KVM is tried again."""
    return state_dir / "accelerator.json"


def _remembered_failure(state_dir: Path) -> str:
    try:
        known = json.loads(memory_path(state_dir).read_text())
        if all(known[key] == value for key, value in _host_key().items()):
            return str(known["reason"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # nothing remembered, or a torn file
    return ""


def _host_key() -> dict[str, str]:
    return {"boot_id": boot_id(), "kernel": os.uname().release}


def device_groups(device: str = KVM_DEVICE) -> tuple[int, ...] | None:
    """Return the groups with which an unprivileged user may open ``device``; None when none can.

    Never group 0, with which it could do more than that. Raises ``OSError`` without the device.
    """
    found = os.stat(device)
    if found.st_mode & _FOR_ALL == _FOR_ALL:
        return ()
    if found.st_gid != 0 and found.st_mode & _FOR_GROUP == _FOR_GROUP:
        return (found.st_gid,)
    return None


def _device_trouble(device: str) -> str:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        if os.geteuid() == 0 and device_groups(device) is None:
            return f"{device}: {ROOT_ONLY}"
    except OSError as error:
        return f"{device}: {error.strerror}"
    return ""
