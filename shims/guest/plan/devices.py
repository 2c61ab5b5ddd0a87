"""Device nodes, and the cgroup device filter as finished BPF.

The guest's kernel has devices of its own; those of the host cannot be handed in by number.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import InputError
from shims.guest.plan.reading import Reader, encode_path

__all__ = ["compile_device_filter", "device_steps", "left_out_devices", "usual_device_filter"]

_ANY = -1
_READ, _WRITE, _MKNOD = 2, 4, 1  # BPF_DEVCG_ACC_*, linux/bpf.h
_ACCESS = {"r": _READ, "w": _WRITE, "m": _MKNOD}
_ALL = _READ | _WRITE | _MKNOD
_BLOCK, _CHAR = 1, 2  # BPF_DEVCG_DEV_*

# What every container gets (OCI runtime spec, "Default Devices"): path, major, minor.
_DEFAULT_NODES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
_DEFAULT_LINKS = (
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
)
# Devices of the host that mean the same in the guest, because the guest's kernel provides them.
_SHARED_MEANING = {(_CHAR, major, minor) for _, major, minor in _DEFAULT_NODES} | {
    (_CHAR, 5, 1),  # console
    (_CHAR, 5, 2),  # ptmx
    (_CHAR, 10, 229),  # fuse
}
# What the reference runtime always allows: making any node, and using the default ones.
_DEFAULT_RULES = (
    (_CHAR, _ANY, _ANY, _MKNOD),
    (_BLOCK, _ANY, _ANY, _MKNOD),
    *((_CHAR, major, minor, _ALL) for _, major, minor in _DEFAULT_NODES),
    (_CHAR, 136, _ANY, _ALL),
    (_CHAR, 5, 2, _ALL),
)


@dataclass(frozen=True)
class _Device:
    kind: int
    major: int
    minor: int

    def overlaps(self, other: _Device) -> bool:
        """Tell whether some device is meant by both."""
        pairs = ((self.major, other.major), (self.minor, other.minor))
        return self.kind == other.kind and all(a == b or _ANY in (a, b) for a, b in pairs)

    def within(self, other: _Device) -> bool:
        """Tell whether ``other`` means every device that this one does."""
        pairs = ((self.major, other.major), (self.minor, other.minor))
        return self.kind == other.kind and all(b in (a, _ANY) for a, b in pairs)

    def __str__(self) -> str:
        """Return it as in a rule: ``c 10:*``."""
        numbers = ("*" if number == _ANY else str(number) for number in (self.major, self.minor))
        return f"{'b' if self.kind == _BLOCK else 'c'} {':'.join(numbers)}"


# ---- nodes -------------------------------------------------------------------------------------


def _node(path: str, mode: int, device: _Device, uid: int = 0, gid: int = 0) -> guest_pb2.Step:
    return guest_pb2.Step(
        node=guest_pb2.NodeStep(
            where=guest_pb2.WHERE_ROOTFS,
            path=encode_path(path),
            mode=mode,
            major=device.major,
            minor=device.minor,
            uid=uid,
            gid=gid,
        )
    )


def _link(path: str, target: str) -> guest_pb2.Step:
    return guest_pb2.Step(
        symlink=guest_pb2.SymlinkStep(
            where=guest_pb2.WHERE_ROOTFS, path=encode_path(path), target=encode_path(target)
        )
    )


_FILE_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def _is_shared(device: Reader) -> bool:
    """Tell whether a device of the spec means the same in the guest."""
    file_type = device.choice("type", _FILE_TYPES)
    numbers = (_CHAR, device.number("major"), device.number("minor"))
    return file_type == stat.S_IFIFO or (file_type == stat.S_IFCHR and numbers in _SHARED_MEANING)


def _planned_node(device: Reader) -> guest_pb2.Step:
    path = device.text("path")
    if not path.startswith("/"):
        raise InputError(device.at("path"), path, "an absolute path")
    if not _is_shared(device):
        raise InputError(
            device.path,
            path,
            "null, zero, full, random, urandom, tty, fuse or a fifo: a microVM does not see the"
            " host's devices",
            hint="leave it out of the container's options; mount a disk's file system on the host,"
            " and bind the directory (in Kubernetes: volumeMode Filesystem, not Block)",
        )
    return _node(
        path,
        device.choice("type", _FILE_TYPES) | device.number("fileMode", 0o666) & 0o7777,
        _Device(_CHAR, device.number("major"), device.number("minor")),
        device.number("uid"),
        device.number("gid"),
    )


def left_out_devices(linux: Reader) -> list[str]:
    """Return the paths of host devices that a privileged container does not get.

    Privileged means every device of the machine, which here is the VM: the list that containerd
    made of the host's is not what was asked for. A device that was asked for by name is refused.
    """
    if compile_device_filter(linux.get("resources")):
        return []
    return [device.text("path") for device in linux.objects("devices") if not _is_shared(device)]


def device_steps(linux: Reader) -> list[guest_pb2.Step]:
    """Return the steps that fill ``/dev``: default nodes, planned ones, links."""
    steps = {
        path: _node(path, stat.S_IFCHR | 0o666, _Device(_CHAR, major, minor))
        for path, major, minor in _DEFAULT_NODES
    }
    left_out = left_out_devices(linux)
    for device in linux.objects("devices"):
        path = device.text("path")
        # The terminal is mounted on the console, and devpts brings the multiplexer.
        if path not in ("/dev/console", "/dev/ptmx", *left_out):
            steps[path] = _planned_node(device)
    return [*steps.values(), *(_link(path, target) for path, target in _DEFAULT_LINKS)]


# ---- filter ------------------------------------------------------------------------------------


class _Rules:
    """The list of allowed devices that a sequence of rules amounts to.

    As the v1 controller did: the newest "all devices" rule sets the default and forgets what came
    before, every other one is an exception to it.
    """

    def __init__(self) -> None:
        self.allow = False
        self.exceptions: dict[_Device, int] = {}

    def set_default(self, allow: bool) -> None:
        self.allow = allow
        self.exceptions.clear()

    def change(self, device: _Device, access: int, allow: bool) -> _Device | None:
        """Apply one rule; return the exception that stands in its way, if one does.

        An exception that is only in part what the rule is about would have to get a hole, and
        neither this list nor the reference runtime's can have one.
        """
        if allow != self.allow:
            self.exceptions[device] = self.exceptions.get(device, 0) | access
            return None
        for known, bits in list(self.exceptions.items()):
            if bits & access and known.overlaps(device):
                if not known.within(device):
                    return known
                self.exceptions[known] = bits & ~access
                if not self.exceptions[known]:
                    del self.exceptions[known]
        return None


def _number(rule: Reader, name: str) -> int:
    value = rule.number(name, _ANY, least=_ANY, most=(1 << 20) - 1)
    return value if rule.has(name) else _ANY


def _apply(rules: _Rules, rule: Reader) -> None:
    kind = rule.text("type", "a") or "a"
    access = 0
    for letter in rule.text("access") or "rwm":
        if letter not in _ACCESS:
            raise InputError(rule.at("access"), rule.text("access"), "some of r, w and m")
        access |= _ACCESS[letter]
    kinds = {"a": (_BLOCK, _CHAR), "b": (_BLOCK,), "c": (_CHAR,), "u": (_CHAR,)}
    if kind not in kinds:
        raise InputError(rule.at("type"), kind, "a, b or c")
    major, minor = _number(rule, "major"), _number(rule, "minor")
    allow = rule.flag("allow")
    if kind == "a" and major == minor == _ANY and access == _ALL:
        rules.set_default(allow)
        return
    for each in kinds[kind]:
        device = _Device(each, major, minor)
        if (known := rules.change(device, access, allow)) is not None:
            raise InputError(rule.path, f"{'allow' if allow else 'deny'} {device}",
                             f"no hole in the rule for {known} before it")  # fmt: skip


# One BPF instruction: code, registers, offset, immediate (linux/bpf.h, struct bpf_insn).
_LOAD_WORD, _JUMP_NE, _JUMP_EQ, _MOVE, _AND, _SHIFT_RIGHT, _MOVE_REG, _EXIT = (
    0x61,
    0x55,
    0x15,
    0xB7,
    0x57,
    0x77,
    0xBF,
    0x95,
)


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | to, offset, value)


def _exception_code(device: _Device, access: int, default_allow: bool) -> bytes:
    """Return "if this device, then the other answer": r2 kind, r3 access, r4 major, r5 minor."""
    checks = [(2, device.kind)]
    if device.major != _ANY:
        checks.append((4, device.major))
    if device.minor != _ANY:
        checks.append((5, device.minor))
    body = _instruction(_MOVE, 0, value=0 if default_allow else 1) + _instruction(_EXIT)
    if access != _ALL:
        # Allowing asks that nothing else is wanted, denying that any of it is.
        mask = access if default_allow else _ALL & ~access
        jump = _JUMP_EQ if default_allow else _JUMP_NE
        body = (
            _instruction(_MOVE_REG, 1, 3)
            + _instruction(_AND, 1, value=mask)
            + _instruction(jump, 1, offset=len(body) // 8, value=0)
            + body
        )
    for register, value in reversed(checks):
        body = _instruction(_JUMP_NE, register, offset=len(body) // 8, value=value) + body
    return body


def usual_device_filter() -> bytes:
    """Return what ``compile_device_filter`` makes of the rules that containerd gives by default.

    The guest has it loaded before a container asks for it. Any other filter works as well, only
    later (see ``WithDefaultUnixDevices`` of containerd's package oci).
    """
    numbers = ((1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1), (136, None), (5, 2))
    rules: list[dict[str, object]] = [{"allow": False, "access": "rwm"}]
    for major, minor in numbers:
        rule: dict[str, object] = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        rules.append(rule if minor is None else {**rule, "minor": minor})
    return compile_device_filter(Reader({"devices": rules}, "linux.resources"))


def compile_device_filter(resources: Reader) -> bytes:
    """Compile ``linux.resources.devices`` and the defaults; empty when everything is allowed.

    The program sees ``struct bpf_cgroup_dev_ctx`` (linux/bpf.h) and returns 1 to allow.
    """
    rules = _Rules()
    for rule in resources.objects("devices"):
        _apply(rules, rule)
    if not rules.allow:
        for kind, major, minor, access in _DEFAULT_RULES:
            rules.change(_Device(kind, major, minor), access, allow=True)
    if rules.allow and not rules.exceptions:
        return b""
    head = (
        _instruction(_LOAD_WORD, 2, 1, 0)
        + _instruction(_MOVE_REG, 3, 2)
        + _instruction(_AND, 2, value=0xFFFF)
        + _instruction(_SHIFT_RIGHT, 3, value=16)
        + _instruction(_LOAD_WORD, 4, 1, 4)
        + _instruction(_LOAD_WORD, 5, 1, 8)
    )
    exceptions = b"".join(
        _exception_code(device, access, rules.allow)
        for device, access in sorted(
            rules.exceptions.items(), key=lambda item: (item[0].kind, item[0].major, item[0].minor)
        )
    )
    tail = _instruction(_MOVE, 0, value=1 if rules.allow else 0) + _instruction(_EXIT)
    return head + exceptions + tail
