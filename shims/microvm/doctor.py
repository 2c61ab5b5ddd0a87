"""What a start of a VM needs of this host, looked at one by one, with the remedy beside it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shims.core import paths
from shims.core.errors import NotFound, NotSupported, ShimError
from shims.microvm import accel, redirect
from shims.microvm.boot import find_program
from shims.microvm.cgroup import find_hierarchies
from shims.microvm.config import QemuUser
from shims.microvm.launcher import fork_task, process_control
from shims.microvm.netlink import Netlink
from shims.microvm.templates import list_templates
from shims.microvm.virtiofs import find_virtiofsd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["Check", "collect"]

_PROGRAM_TIMEOUT = 10.0
_OLDEST_QEMU = (7, 2)
_LITTLE_SPACE = 2 << 30
_CLONE_NEWNET = 0x40000000
_LOOPBACK = 1
"""Index of the loopback link in every network namespace."""
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
        _seccomp(),
        _overlay(),
        _tool("mkfs.erofs", "erofs-utils", "image layers become erofs images"),
        _tool("mke2fs", "e2fsprogs", "writable layers are ext4 disks"),
        _tool("setsid", "util-linux", "the keeper of templates is started by it"),
        _guest_image(state_dir),
        await _keeper(run_dir),
        _cgroups(),
        _vsock(),
        _tap(),
        await _redirect(),
        _user(),
        _space(state_dir),
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
            _accelerator_fix(state_dir, facts),
        )
    return Check("accelerator", "ok", "KVM: the CPU offers virtualization and /dev/kvm opens")


def _accelerator_fix(state_dir: Path, facts: accel.HostFacts) -> str:
    if not facts.hardware:
        return "use a host with nested virtualization, or bare metal, for KVM"
    if not facts.device:
        file = accel.memory_path(state_dir)
        return f"mend it and `rm {file}`: the next start tries KVM again"
    for trouble, fix in (
        (accel.ROOT_ONLY, "chgrp kvm /dev/kvm && chmod 660 /dev/kvm"),
        (os.strerror(errno.EACCES), "join the group of /dev/kvm (usermod -aG kvm USER)"),
        (os.strerror(errno.ENOENT), "modprobe kvm_intel, or kvm_amd; some BIOSes switch it off"),
    ):
        if facts.device.endswith(trouble):
            return fix
    return "see what the kernel says of kvm: `dmesg | grep -i kvm`"


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
    try:
        return Check("virtiofsd", "ok", find_virtiofsd().path)
    except NotSupported as error:
        words = f"{error.message}; plain directories and writable mounts need them"
        return Check("virtiofsd", "warn", words, error.hint)


def _seccomp() -> Check:
    try:
        import pyseccomp  # noqa: F401  it looks for the library when it is imported
    except (ImportError, RuntimeError):
        words = "not installed; containers with a seccomp profile, which is most, are refused"
        return Check("libseccomp", "warn", words, "apt-get install libseccomp2")
    return Check("libseccomp", "ok", "seccomp profiles can be compiled")


def _overlay(filesystems: str = "/proc/filesystems", modules: str = "") -> Check:
    """Layers become an image by way of an overlay mount; the kernel loads its module by itself."""
    modules = modules or f"/lib/modules/{os.uname().release}/modules.dep"
    if "overlay" in _words(filesystems) or "/overlay.ko" in " ".join(_words(modules)):
        return Check("overlay", "ok", "the kernel can merge the layers of an image")
    words = "the kernel has no overlay file system; images of several layers cannot be read"
    return Check("overlay", "warn", words, "install all modules of the kernel, or load `overlay`")


def _words(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except OSError:
        return []


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


async def _redirect() -> Check:
    """Redirect a loopback link to itself, in a network namespace that ends with the attempt."""
    if os.geteuid() != 0:
        return Check("traffic control", "warn", "not root: VMs cannot take a pod's network")

    def attempt() -> None:
        process_control()("unshare", _CLONE_NEWNET)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            redirect.add_redirect(Netlink(sock), _LOOPBACK, _LOOPBACK, "lo")

    process = fork_task(attempt, None)
    try:
        async with asyncio.timeout(_PROGRAM_TIMEOUT):
            code = await asyncio.shield(process.exited)
    except TimeoutError:
        code = -1
    finally:
        process.kill()
    if code != 0:
        words = f"packets cannot be redirected to a VM: {process.failure or 'no answer'}"
        fix = "modprobe -a sch_ingress cls_u32 act_mirred, which may be a package of their own"
        return Check("traffic control", "warn", words, fix)
    return Check("traffic control", "ok", "packets can be redirected to a VM")


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


def _space(state_dir: Path) -> Check:
    place = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    words = f"{free / (1 << 30):.1f} GiB for images and writable layers in {state_dir}"
    if free < _LITTLE_SPACE:
        return Check("free space", "warn", words, "void-cache gc")
    return Check("free space", "ok", words)


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
