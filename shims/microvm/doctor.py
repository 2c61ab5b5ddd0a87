"""What a start of a VM needs of this host, looked at one by one, with the remedy beside it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shims.core import paths
from shims.core.errors import NotFound, ShimError
from shims.microvm import accel
from shims.microvm.boot import find_program
from shims.microvm.cgroup import find_hierarchies
from shims.microvm.config import QemuUser
from shims.microvm.templates import list_templates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["Check", "collect"]

_PROGRAM_TIMEOUT = 10.0
_OLDEST_QEMU = (7, 2)
_VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
_SHIM = "containerd-shim-voidbox-v2"


@dataclass(frozen=True)
class Check:
    """One finding: a fact of this host, whether it will do, and what to do about it."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    """``warn``: something works less well or not at all that not everybody needs."""
    detail: str
    fix: str = ""


async def collect(
    state_dir: Path | None = None,
    run_dir: Path | None = None,
    *,
    qemu: str = "qemu-system-x86_64",
) -> list[Check]:
    """Look at everything; takes a fraction of a second and changes nothing."""
    state_dir = state_dir or paths.state_dir()
    run_dir = run_dir or paths.runtime_dir()
    return [
        _accelerator(state_dir),
        *await _qemu(qemu),
        _virtiofsd(),
        _tool("mkfs.erofs", "erofs-utils", "image layers become erofs images"),
        _tool("mke2fs", "e2fsprogs", "writable layers are ext4 disks"),
        _tool("setsid", "util-linux", "the keeper of templates is started by it"),
        _guest_image(state_dir),
        await _keeper(run_dir),
        _cgroups(),
        _vsock(),
        _tap(),
        _user(),
        *(_directory(name, path) for name, path in (("state", state_dir), ("runtime", run_dir))),
        *_containerd_sees_the_shim(),
    ]


def _accelerator(state_dir: Path) -> Check:
    facts = accel.read_host_facts(state_dir)
    if why_not := accel.explain(facts):
        return Check(
            "accelerator",
            "warn",
            f"TCG (software), some ten times slower than KVM: {why_not}",
            "use a host with nested virtualization, or bare metal, for KVM",
        )
    return Check("accelerator", "ok", "KVM: the CPU offers virtualization and /dev/kvm opens")


async def _qemu(name: str) -> list[Check]:
    try:
        path = find_program(name)
    except NotFound as error:
        return [Check("qemu", "fail", error.message, error.hint)]
    try:
        version = (await _output(path, "--version")).partition("\n")[0]
        machines = await _output(path, "-machine", "help")
    except (OSError, TimeoutError) as error:
        return [Check("qemu", "fail", f"{path} does not run: {error}")]
    numbers = _version_numbers(version)
    if numbers < _OLDEST_QEMU:
        oldest = ".".join(map(str, _OLDEST_QEMU))
        return [Check("qemu", "warn", f"{path}: {version}", f"{oldest} or newer is tested")]
    missing = [kind for kind in ("microvm", "q35") if f"\n{kind} " not in machines]
    if missing:
        return [Check("qemu", "fail", f"{path} lacks machine type {', '.join(missing)}")]
    return [Check("qemu", "ok", f"{path}: {version}, machine types microvm and q35")]


def _version_numbers(text: str) -> tuple[int, ...]:
    words = [word for word in text.split() if word[:1].isdigit() and "." in word]
    return tuple(int(part) for part in words[0].split(".")[:2] if part.isdigit()) if words else ()


def _virtiofsd() -> Check:
    found = next((path for path in _VIRTIOFSD if os.access(path, os.X_OK)), "")
    if found:
        return Check("virtiofsd", "ok", found)
    return Check(
        "virtiofsd",
        "warn",
        "not installed: plain directories and writable mounts cannot be shared with a VM",
        "apt-get install qemu-system-common (Debian 12) or virtiofsd",
    )


def _tool(name: str, package: str, purpose: str) -> Check:
    try:
        return Check(
            name, "ok", find_program(name, os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        )
    except NotFound:
        return Check(name, "fail", f"not installed; {purpose}", f"apt-get install {package}")


def _guest_image(state_dir: Path) -> Check:
    from shims.guest.image import find_guest_image

    try:
        image = find_guest_image(state=state_dir)
    except ShimError as error:
        return Check("guest image", "warn", error.message, error.hint or "void-guest build")
    return Check("guest image", "ok", f"kernel {image.release}, {image.directory}")


async def _keeper(run_dir: Path) -> Check:
    try:
        templates = await list_templates(run_dir)
    except ShimError as error:
        return Check("templates", "warn", error.message, error.hint)
    if not templates:
        return Check("templates", "ok", "none stored; the first start builds one")
    size = sum(template["bytes"] for template in templates) >> 20
    return Check("templates", "ok", f"{len(templates)} stored, {size} MiB")


def _cgroups() -> Check:
    hierarchies = find_hierarchies()
    versions = sorted({hierarchy.version for hierarchy in hierarchies})
    if not versions:
        return Check("cgroups", "fail", "no cgroup file system is mounted", "mount cgroup2")
    if os.geteuid() != 0:
        return Check("cgroups", "warn", "not root: VMs run in the caller's cgroup")
    return Check("cgroups", "ok", " and ".join(f"v{version}" for version in versions))


def _vsock() -> Check:
    there = "is there, and" if os.path.exists("/dev/vhost-vsock") else "is missing, but"
    return Check(
        "vsock", "ok", f"/dev/vhost-vsock {there} not used: the guest link is virtio-serial"
    )


def _tap() -> Check:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        words = f"/dev/net/tun: {error.strerror}; containers get no network but loopback"
        return Check("tap devices", "warn", words, "modprobe tun")
    return Check("tap devices", "ok", "a VM can carry the network of a pod")


def _user() -> Check:
    if os.geteuid() != 0:
        return Check("user", "ok", f"QEMU runs as user {os.geteuid()}, like this command")
    users = QemuUser()
    last = users.first + users.count - 1
    taken = _passwd_between(users.first, last)
    if taken:
        return Check(
            "user", "warn", f"ids {users.first}-{last} for QEMU overlap with users {taken}"
        )
    return Check("user", "ok", f"each QEMU runs as its own id of {users.first}-{last}")


def _passwd_between(first: int, last: int) -> list[str]:
    import pwd

    return [entry.pw_name for entry in pwd.getpwall() if first <= entry.pw_uid <= last]


def _directory(name: str, path: Path) -> Check:
    title = f"{name} directory"
    try:
        found = path.lstat()
    except FileNotFoundError:
        return Check(title, "ok", f"{path} will be made")
    if found.st_uid != os.geteuid():
        return Check(title, "fail", f"{path} belongs to user {found.st_uid}", "move it away")
    if found.st_mode & 0o077:
        mode = f"{found.st_mode & 0o7777:04o}"
        return Check(title, "warn", f"{path} has mode {mode}", f"chmod 700 {path}")
    return Check(title, "ok", f"{path}, mode 0700")


def _containerd_sees_the_shim(
    processes: Callable[[], Iterable[tuple[int, str]]] | None = None,
) -> list[Check]:
    """Look for the shim on the PATH of each containerd that runs; they need not agree with ours."""
    checks = []
    for pid, name in (processes or _processes)():
        if name != "containerd":
            continue
        try:
            with open(f"/proc/{pid}/environ") as file:
                variables = dict(
                    item.split("=", 1) for item in file.read().split("\0") if "=" in item
                )
        except OSError:
            continue
        path = variables.get("PATH", "")
        try:
            detail = find_program(_SHIM, path)
            checks.append(Check(f"containerd ({pid})", "ok", f"finds {detail}"))
        except NotFound:
            fix = f"link {_SHIM} into one of {path or 'its PATH'}"
            checks.append(Check(f"containerd ({pid})", "warn", f"does not find {_SHIM}", fix))
    return checks or [Check("containerd", "warn", "none runs", "needed for `ctr run` only")]


def _processes() -> Iterable[tuple[int, str]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/comm") as file:
                    yield int(entry), file.read().strip()
            except OSError:
                continue


async def _output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_PROGRAM_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return output.decode(errors="replace")
