"""Profiles as BPF, run by a small interpreter of classic BPF."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from shims.core.errors import InputError
from shims.guest.plan.reading import Reader
from shims.guest.plan.seccomp import compile_seccomp

pyseccomp = pytest.importorskip("pyseccomp")

X86_64, I386 = 0xC000003E, 0x40000003
ALLOW, KILL_THREAD, KILL_PROCESS, ERRNO, TRAP = 0x7FFF0000, 0, 0x80000000, 0x50000, 0x30000


def compiled(profile: dict[str, Any]) -> tuple[bytes, int]:
    return compile_seccomp(Reader(profile, "linux.seccomp"))


def jumps(operation: int, accumulator: int, k: int) -> bool:
    """Whether a conditional jump is taken."""
    taken = {
        0x15: accumulator == k,
        0x25: accumulator > k,
        0x35: accumulator >= k,
        0x45: accumulator & k != 0,
    }
    return taken[operation]


def run(code: bytes, number: int, *args: int, arch: int = X86_64) -> int:
    """Return the filter's answer to one system call."""
    padded = (*args, *([0] * (6 - len(args))))
    data = struct.pack("<iIQ6Q", number, arch, 0, *padded)
    program = list(struct.iter_unpack("<HBBI", code))
    accumulator, at = 0, 0
    while True:
        operation, true, false, k = program[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x05:
            at += k
        elif operation == 0x06:
            return int(k)
        else:
            at += true if jumps(operation, accumulator, k) else false


def number(name: str) -> int:
    return int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))


def rule(*names: str, action: str = "SCMP_ACT_ALLOW", **more: object) -> dict[str, Any]:
    return {"names": list(names), "action": action, **more}


def test_no_profile_is_no_filter() -> None:
    assert compiled({}) == (b"", 0)


def test_actions_and_errnos() -> None:
    code, _ = compiled(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                rule("mkdir", action="SCMP_ACT_ERRNO"),
                rule("rmdir", action="SCMP_ACT_ERRNO", errnoRet=95),
                rule("reboot", action="SCMP_ACT_KILL_PROCESS"),
                rule("mount", action="SCMP_ACT_KILL"),
                rule("umount2", action="SCMP_ACT_TRAP"),
                rule("no_such_call", "getpid", action="SCMP_ACT_LOG"),
            ],
        }
    )
    assert run(code, number("mkdir")) == ERRNO | errno.EPERM
    assert run(code, number("rmdir")) == ERRNO | 95
    assert run(code, number("reboot")) == KILL_PROCESS
    assert run(code, number("mount")) == KILL_THREAD
    assert run(code, number("umount2")) == TRAP
    assert run(code, number("read")) == ALLOW
    assert run(code, number("read"), arch=I386) == KILL_THREAD


def test_arguments() -> None:
    def argument(index: int, value: int, op: str = "SCMP_CMP_EQ", two: int = 0) -> dict[str, Any]:
        return {"index": index, "value": value, "valueTwo": two, "op": op}

    code, _ = compiled(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                rule("personality", args=[argument(0, 0)]),
                rule("personality", args=[argument(0, 8)]),
                rule("socket", args=[argument(0, 1), argument(1, 2)]),
                rule("clone", args=[argument(0, 0x7E020000, "SCMP_CMP_MASKED_EQ", 0)]),
                rule("ioctl", args=[argument(1, 1), argument(1, 2)]),
            ],
        }
    )
    assert [run(code, number("personality"), value) == ALLOW for value in (0, 8, 4)] == [
        True,
        True,
        False,
    ]
    assert run(code, number("socket"), 1, 2) == ALLOW
    assert run(code, number("socket"), 1, 3) == ERRNO | errno.EPERM
    assert run(code, number("clone"), 0x11) == ALLOW
    assert run(code, number("clone"), 0x10000000) != ALLOW
    assert run(code, number("ioctl"), 0, 1) == run(code, number("ioctl"), 0, 2) == ALLOW


def test_calls_newer_than_the_profile_do_not_exist() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [rule("read", "openat2")],
    }
    code, _ = compiled(profile)
    newest = number("openat2")
    assert run(code, newest) == ALLOW
    assert run(code, newest + 1) == ERRNO | errno.ENOSYS
    assert run(code, newest - 1) == ERRNO | errno.EPERM
    assert run(code, 0x40000000 | number("read")) == ALLOW  # x32
    assert run(code, 3, arch=I386) == ALLOW
    assert run(code, 4000, arch=I386) == ERRNO | errno.ENOSYS
    code, _ = compiled({**profile, "defaultErrnoRet": errno.ENOSYS})
    assert run(code, newest - 1) == ERRNO | errno.ENOSYS
    code, _ = compiled({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []})
    assert run(code, newest + 1) == ALLOW


def test_flags() -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("read", action="SCMP_ACT_LOG")]}
    assert compiled(profile)[1] == 4
    assert compiled({**profile, "flags": []})[1] == 0
    assert compiled({**profile, "flags": ["SECCOMP_FILTER_FLAG_LOG"]})[1] == 2


@pytest.mark.parametrize(
    ("profile", "field"),
    [
        ({"defaultAction": "x"}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["x"]}, "flags[0]"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["x"]}, "architectures[0]"),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("read", action="x")]},
            "syscalls[0].action",
        ),
        (
            {
                "defaultAction": "SCMP_ACT_KILL",
                "syscalls": [rule("read", args=[{"index": 6, "op": "SCMP_CMP_EQ"}])],
            },
            "syscalls[0].args[0].index",
        ),
    ],
)
def test_profiles_that_cannot_be(profile: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        compiled(profile)
    assert str(caught.value).startswith(f"linux.seccomp.{field}: got ")
