"""``process`` of the spec: the first process of a container, or an exec."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import InputError
from shims.guest.plan.capabilities import compile_capabilities
from shims.guest.plan.reading import UINT64_MAX, Reader, encode_path

if TYPE_CHECKING:
    from shims.guest.plan.model import Streams

__all__ = ["RLIMITS", "fill_process", "parse_cpus"]

# asm-generic/resource.h
_LIMITS = (
    "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO"
    " RTTIME"
)
RLIMITS = {f"RLIMIT_{name}": number for number, name in enumerate(_LIMITS.split())}
# linux/sched.h
_POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
_SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
# linux/ioprio.h
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_IO_CLASS_SHIFT = 13

_MOST_CPUS = 8192
_UNLIMITED = UINT64_MAX


def parse_cpus(text: str, path: str) -> bytes:
    """Turn a list such as ``0-3,7`` into the bits of a ``cpu_set_t``, little endian."""
    bits = 0
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        first = int(match[1]) if match else -1
        last = int(match[2] or match[1]) if match else -1
        if not 0 <= first <= last < _MOST_CPUS:
            raise InputError(path, text, "a list of CPUs such as 0-3,7")
        bits |= ((1 << (last - first + 1)) - 1) << first
    return bits.to_bytes((bits.bit_length() + 63) // 64 * 8, "little")


def _fill_user(process: Reader, plan: guest_pb2.ProcessPlan) -> None:
    user = process.get("user")
    plan.uid = user.number("uid")
    plan.gid = user.number("gid")
    plan.additional_gids.extend(user.numbers("additionalGids"))
    if user.has("umask"):
        plan.umask = user.number("umask", most=0o777)


def _fill_rlimits(process: Reader, plan: guest_pb2.ProcessPlan) -> None:
    seen: set[int] = set()
    for limit in process.objects("rlimits"):
        resource = limit.choice("type", RLIMITS)
        if resource in seen:
            raise InputError(limit.at("type"), limit.text("type"), "each limit once")
        seen.add(resource)
        soft = limit.number("soft", most=_UNLIMITED)
        hard = limit.number("hard", most=_UNLIMITED)
        if soft > hard:
            raise InputError(limit.at("soft"), soft, f"at most the hard limit, {hard}")
        plan.rlimits.add(resource=resource, soft=soft, hard=hard)


def _fill_scheduling(process: Reader, plan: guest_pb2.ProcessPlan) -> None:
    if process.has("scheduler"):
        scheduler = process.get("scheduler")
        flags = 0
        for index, name in enumerate(scheduler.texts("flags")):
            if name not in _SCHEDULER_FLAGS:
                path = f"{scheduler.at('flags')}[{index}]"
                raise InputError(path, name, ", ".join(_SCHEDULER_FLAGS))
            flags |= _SCHEDULER_FLAGS[name]
        plan.scheduler.CopyFrom(
            guest_pb2.Scheduler(
                policy=scheduler.choice("policy", _POLICIES),
                nice=scheduler.number("nice", least=-20, most=19),
                priority=scheduler.number("priority", most=99),
                flags=flags,
                runtime=scheduler.number("runtime", most=UINT64_MAX),
                deadline=scheduler.number("deadline", most=UINT64_MAX),
                period=scheduler.number("period", most=UINT64_MAX),
            )
        )
    if process.has("ioPriority"):
        priority = process.get("ioPriority")
        level = priority.number("priority", most=7)
        plan.io_priority = priority.choice("class", _IO_CLASSES) << _IO_CLASS_SHIFT | level
    affinity = process.get("execCPUAffinity")
    # The first set is for the moments before execve, which are void-init's own here.
    cpus = affinity.text("final") or affinity.text("initial")
    if cpus:
        plan.cpu_affinity = parse_cpus(cpus, affinity.at("final"))


def _fill_terminal(process: Reader, plan: guest_pb2.ProcessPlan) -> None:
    plan.terminal = process.flag("terminal")
    size = process.get("consoleSize")
    if plan.terminal:
        plan.rows = size.number("height", most=65535)
        plan.columns = size.number("width", most=65535)


def _environment(process: Reader) -> list[bytes]:
    """Return the variables, each once: of several the last counts, as for the reference runtime."""
    variables: dict[str, str] = {}
    for index, entry in enumerate(process.texts("env")):
        name, separator, _ = entry.partition("=")
        if not name or not separator:
            raise InputError(f"{process.at('env')}[{index}]", entry, "NAME=value")
        variables[name] = entry
    return [encode_path(entry) for entry in variables.values()]


def fill_process(process: Reader, plan: guest_pb2.ProcessPlan, streams: Streams) -> None:
    """Write everything but the seccomp filter, which belongs to the container, into ``plan``."""
    args = process.texts("args")
    if not args or not args[0]:
        raise InputError(process.at("args"), args, "a program and its arguments")
    cwd = process.text("cwd", "/")
    if not cwd.startswith("/"):
        raise InputError(process.at("cwd"), cwd, "an absolute path")
    plan.args.extend(encode_path(argument) for argument in args)
    plan.env.extend(_environment(process))
    plan.cwd = encode_path(cwd)
    plan.no_new_privileges = process.flag("noNewPrivileges")
    plan.capabilities.CopyFrom(compile_capabilities(process.get("capabilities")))
    if process.has("oomScoreAdj"):
        plan.oom_score_adj = process.number("oomScoreAdj", least=-1000, most=1000)
    _fill_terminal(process, plan)
    _fill_user(process, plan)
    _fill_rlimits(process, plan)
    _fill_scheduling(process, plan)
    plan.stdin = streams.stdin
    plan.stdout = streams.stdout
    plan.stderr = streams.stderr and not plan.terminal
