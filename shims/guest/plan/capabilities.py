"""Capability sets: names to bits. Numbers: linux/capability.h."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protos.gen.voidbox.guest.v1 import guest_pb2

if TYPE_CHECKING:
    from shims.guest.plan.reading import Reader

__all__ = ["CAPABILITIES", "compile_capabilities"]

_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
CAPABILITIES = {f"CAP_{name}": number for number, name in enumerate(_NAMES.split())}


def _bits(sets: Reader, name: str) -> int:
    # A name that this table lacks is newer than the guest's kernel, which could not grant it;
    # the reference runtime leaves such names out as well.
    known = (CAPABILITIES.get(entry.upper()) for entry in sets.texts(name))
    return sum(1 << number for number in {number for number in known if number is not None})


def compile_capabilities(sets: Reader) -> guest_pb2.Capabilities:
    """Compile ``process.capabilities``; without it the process has none.

    The kernel refuses an ambient capability that is not permitted and inheritable, so those that
    could never work are left out.
    """
    bounding = _bits(sets, "bounding")
    permitted = _bits(sets, "permitted")
    inheritable = _bits(sets, "inheritable")
    return guest_pb2.Capabilities(
        bounding=bounding,
        effective=_bits(sets, "effective") & permitted,
        permitted=permitted,
        inheritable=inheritable,
        ambient=_bits(sets, "ambient") & permitted & inheritable,
    )
