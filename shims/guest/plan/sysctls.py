"""``linux.sysctl``: kernel parameters, which are those of the VM's own kernel."""

from __future__ import annotations

import re

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import InputError
from shims.guest.plan.reading import Reader, encode_path

__all__ = ["sysctl_path", "sysctl_steps"]

# These name a program that the guest's kernel starts outside every container, or decide how the
# VM ends, which is the shim's business.
_NOT_THE_CONTAINERS = re.compile(
    r"kernel/(core_pattern|modprobe|hotplug|poweroff_cmd|sysrq|ctrl-alt-del|kexec_\w+"
    r"|modules_disabled|usermodehelper/.*|panic\w*|\w*panic\w*)|fs/binfmt_misc/.*|vm/panic_on_oom"
)


def sysctl_path(name: str) -> str:
    """Turn a name into a path below ``/proc/sys``.

    As sysctl(8): the first separator decides, so that interface names keep their dots in
    ``net/ipv4/conf/eth0.100/forwarding`` and ``net.ipv4.conf.eth0/100.forwarding``.
    """
    first = re.search(r"[./]", name)
    if first is None or first[0] == "/":
        return name
    return name.translate(str.maketrans("./", "/."))


def sysctl_steps(linux: Reader) -> list[guest_pb2.Step]:
    """Return one step per parameter, in the order of their names."""
    steps = []
    for name, value in sorted(linux.mapping("sysctl").items()):
        path = sysctl_path(name)
        parts = path.split("/")
        if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
            raise InputError(linux.at("sysctl"), name, "a name such as net.ipv4.ip_forward")
        if _NOT_THE_CONTAINERS.fullmatch(path):
            raise InputError(
                f"{linux.at('sysctl')}.{name}",
                value,
                "a parameter of the workload; this one decides over the VM itself",
            )
        steps.append(
            guest_pb2.Step(
                sysctl=guest_pb2.SysctlStep(path=encode_path(path), value=encode_path(value))
            )
        )
    return steps
