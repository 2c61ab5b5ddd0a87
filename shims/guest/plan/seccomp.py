"""``linux.seccomp`` as finished BPF, compiled by libseccomp on the host.

The binding is imported on first use: most containers of ``ctr`` have no profile, and loading the
library costs more than the rest of the compiler. The only file involved is an anonymous one in
memory, because libseccomp writes filters to descriptors only.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import Any

from shims.core.errors import InputError, NotSupported
from shims.guest.plan.reading import UINT64_MAX, Reader

__all__ = ["SECCOMP_FLAGS", "compile_seccomp"]

# linux/seccomp.h
SECCOMP_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
_SPEC_ALLOW = 4
_NEEDS_LISTENER = 32

# seccomp.h of libseccomp
_KILL_PROCESS, _KILL_THREAD, _TRAP, _ERRNO, _TRACE, _LOG, _ALLOW = (
    0x80000000,
    0x00000000,
    0x00030000,
    0x00050000,
    0x7FF00000,
    0x7FFC0000,
    0x7FFF0000,
)
_ACTIONS = {
    "SCMP_ACT_KILL": _KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": _KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
    "SCMP_ACT_TRAP": _TRAP,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_ALLOW": _ALLOW,
    "SCMP_ACT_LOG": _LOG,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
# Audit architecture tokens (linux/audit.h), which are libseccomp's own for all but x32.
_X32_BIT = 0x40000000
_ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_MIPS": 0x8,
    "SCMP_ARCH_MIPS64": 0x80000008,
    "SCMP_ARCH_MIPS64N32": 0xA0000008,
    "SCMP_ARCH_MIPSEL": 0x40000008,
    "SCMP_ARCH_MIPSEL64": 0xC0000008,
    "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
    "SCMP_ARCH_PPC": 0x14,
    "SCMP_ARCH_PPC64": 0x80000015,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390": 0x16,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
    "SCMP_ARCH_PARISC": 0xF,
    "SCMP_ARCH_PARISC64": 0x8000000F,
}
_X86_64, _X32 = _ARCHITECTURES["SCMP_ARCH_X86_64"], _ARCHITECTURES["SCMP_ARCH_X32"]
_OPTIMIZE_ATTRIBUTE = 8  # SCMP_FLTATR_CTL_OPTIMIZE
_BINARY_TREE = 2


@dataclass(frozen=True)
class _Action:
    value: int

    @property
    def permits(self) -> bool:
        return self.value in (_ALLOW, _LOG)


def _action(rule: Reader, name: str, errno_name: str) -> _Action:
    action = rule.text(name)
    if action == "SCMP_ACT_NOTIFY":
        raise InputError(
            rule.at(name),
            action,
            "an action that the guest can take alone: no listener on the host can read a"
            " container's memory in a VM",
        )
    value = rule.choice(name, _ACTIONS)
    if value in (_ERRNO, _TRACE):
        value |= rule.number(errno_name, errno.EPERM, most=0xFFFF)
    return _Action(value)


def _load_library() -> Any:
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise NotSupported(
            "the container has a seccomp profile, but libseccomp is missing on this host",
            hint="install libseccomp2, or run the container without a profile",
        ) from error
    return pyseccomp


def _conditions(library: Any, rule: Reader) -> list[tuple[int, Any]]:
    """Return the argument index and the comparison of each entry of ``args``."""
    conditions = []
    for entry in rule.objects("args"):
        index = entry.number("index", most=5)
        operator = entry.choice("op", _OPERATORS)
        value = entry.number("value", most=UINT64_MAX)
        second = entry.number("valueTwo", most=UINT64_MAX)
        conditions.append((index, library.Arg(index, operator, value, second)))
    return conditions


def _add_rule(library: Any, compiled: Any, rule: Reader, default: _Action) -> None:
    action = _action(rule, "action", "errnoRet")
    if action == default:
        return
    conditions = _conditions(library, rule)
    indexes = [index for index, _ in conditions]
    # Several conditions on one argument are alternatives, as no value could satisfy them all in
    # libseccomp's reading; on different arguments they must all hold.
    alternatives: list[list[Any]] = [[comparison for _, comparison in conditions]]
    if len(set(indexes)) < len(indexes):
        alternatives = [[comparison] for _, comparison in conditions]
    for name in rule.texts("names"):
        number = library.resolve_syscall(library.Arch.NATIVE, name)
        if number == -1:
            continue  # no system call of any architecture that this libseccomp knows
        for comparisons in alternatives:
            try:
                compiled.add_rule(action.value, number, *comparisons)
            except OSError as error:
                allowed = f"a rule that libseccomp takes ({error})"
                raise InputError(rule.path, name, allowed) from error


def _newest_syscalls(library: Any, profile: Reader, architectures: set[int]) -> dict[int, int]:
    """Return the highest system call number that the profile names, by architecture."""
    names = {name for rule in profile.objects("syscalls") for name in rule.texts("names")}
    newest = {}
    for architecture in architectures:
        numbers = [library.resolve_syscall(architecture, name) for name in names]
        known = [number & ~_X32_BIT for number in numbers if number >= 0]
        if known:
            newest[architecture] = max(known)
    return newest


def _classic(code: int, true: int, false: int, value: int) -> bytes:
    return struct.pack("<HBBI", code, true, false, value)


_LOAD, _EQUAL, _AT_LEAST, _GREATER, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x06


def _unknown_is_enosys(newest: dict[int, int]) -> bytes:
    """Return instructions that answer ENOSYS for system calls newer than the profile.

    A profile cannot name what did not exist when it was written. Answering with its default error
    (EPERM) breaks libraries that try a new call and fall back to the old one on ENOSYS only.
    """
    code = b""
    for architecture, last in sorted(newest.items()):
        if architecture == _X32:
            continue  # shares x86-64's token; its numbers go to the filter as they are
        answer = _classic(_GREATER, 0, 1, last) + _classic(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
        if architecture == _X86_64:
            answer = _classic(_AT_LEAST, len(answer) // 8, 0, _X32_BIT) + answer
        body = _classic(_LOAD, 0, 0, 0) + answer
        code += _classic(_LOAD, 0, 0, 4) + _classic(_EQUAL, 0, len(body) // 8, architecture) + body
    return code


def _export(compiled: Any) -> bytes:
    with os.fdopen(os.memfd_create("seccomp"), "w+b") as file:
        compiled.export_bpf(file)
        file.seek(0)
        return file.read()


def _compile_filter(profile: Reader) -> bytes:
    library = _load_library()
    default = _action(profile, "defaultAction", "defaultErrnoRet")
    native = library.system_arch()
    architectures = {native}
    compiled = library.SyscallFilter(default.value)
    for index, name in enumerate(profile.texts("architectures")):
        if name not in _ARCHITECTURES:
            raise InputError(f"{profile.at('architectures')}[{index}]", name, "an SCMP_ARCH_* name")
        architecture = _ARCHITECTURES[name]
        if architecture not in architectures:
            compiled.add_arch(architecture)
            architectures.add(architecture)
    for rule in profile.objects("syscalls"):
        _add_rule(library, compiled, rule, default)
    try:
        compiled.set_attr(_OPTIMIZE_ATTRIBUTE, _BINARY_TREE)
    except OSError:
        pass  # libseccomp before 2.5: a longer way through the same rules
    code = _export(compiled)
    if not default.permits and default.value != _ERRNO | errno.ENOSYS:
        code = _unknown_is_enosys(_newest_syscalls(library, profile, architectures)) + code
    return code


def compile_seccomp(profile: Reader) -> tuple[bytes, int]:
    """Compile a profile into (``struct sock_filter[]``, SECCOMP_FILTER_FLAG_*).

    Without a profile: no filter. Raises :class:`InputError` for what cannot be expressed.
    """
    if not profile.value:
        return b"", 0
    flags = 0 if profile.has("flags") else _SPEC_ALLOW
    for index, name in enumerate(profile.texts("flags")):
        if name not in SECCOMP_FLAGS:
            path = f"{profile.at('flags')}[{index}]"
            raise InputError(path, name, ", ".join(SECCOMP_FLAGS))
        flags |= SECCOMP_FLAGS[name]
    return _compile_filter(profile), flags & ~_NEEDS_LISTENER
