"""Root file systems inside real VMs: what a container sees is what it would see under runc."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.guest.inotify import Watch
from shims.guest.plan import compile_plan
from shims.guest.plan.model import GuestSource
from shims.guest.push import push_volume
from shims.microvm.image_store import collect
from shims.microvm.images import ImageCache
from shims.microvm.machine import start_machine
from shims.microvm.plan import SHARE_PORTS
from shims.microvm.rootfs import Means, PreparedRootfs, needs_share, prepare_rootfs
from shims.microvm.virtiofs import ShareOptions, start_share
from tests.microvm import trees

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from shims.microvm.machine import Machine
    from tests.microvm.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.timeout(120)]
HERE = Path(__file__).parent
TIMEOUT = 60.0
CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP", "SYS_ADMIN"]


@dataclass(frozen=True)
class Mount:
    type: str
    source: str = ""
    options: tuple[str, ...] = ()
    target: str = ""


@pytest.fixture(scope="session")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _compiled("walker", tmp_path_factory.mktemp("walker"))


def _compiled(name: str, place: Path) -> Path:
    if shutil.which("musl-gcc") is None:
        pytest.skip("not installed: musl-tools")
    program, source = place / name, HERE / f"{name}.c"
    subprocess.run(["musl-gcc", "-O2", "-static", "-o", program, source], check=True, timeout=60)
    return program


@pytest.fixture
async def means(host: Host, tmp_path: Path) -> AsyncIterator[Means]:
    cache = ImageCache(tmp_path / "images")
    yield Means(cache, tmp_path / "scratch", host.run_dir, scratch_size=256 << 20)
    await cache.close()


def _on_the_host(mount: Mount, place: Path, program: str = "/walker") -> list[str]:
    """Return the program's lines in a mount that is mounted as runc would."""
    (place / "root").mkdir(parents=True)
    if mount.type == "overlay":
        words = ["mount", "-t", "overlay", "-o", ",".join(mount.options), "none"]
    else:
        words = ["mount", "--bind", mount.source]
    script = '"$@" root && exec chroot root "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, program, *words],
        cwd=place, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()


async def _attach(machine: Machine, prepared: PreparedRootfs) -> None:
    for disk in prepared.disks:
        await machine.attach_disk(disk.fd, disk.serial, readonly=disk.readonly)
    for share in prepared.shares:
        await machine.attach_share(share.tag, share.socket)


async def _run(
    machine: Machine,
    prepared: PreparedRootfs,
    args: Sequence[str],
    *,
    name: str = "c1",
    mounts: Sequence[dict[str, Any]] = (),
    sources: dict[int, GuestSource] | None = None,
) -> str:
    """Return what a container writes to stdout."""
    spec = {
        "ociVersion": "1.0.2",
        "process": {
            "args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
            "capabilities": {
                kind: [f"CAP_{name}" for name in CAPABILITIES]
                for kind in ("bounding", "effective", "permitted")
            },
        },
        "root": {"path": "rootfs", "readonly": prepared.rootfs.readonly},
        "mounts": list(mounts),
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
    }  # fmt: skip
    plan = compile_plan(spec, container_id=name, rootfs=prepared.rootfs, sources=sources or {})
    plan.process.stdout = True
    link = machine.link
    await link.create_container(plan, timeout=TIMEOUT)
    await link.start_process(name, timeout=TIMEOUT)
    pieces = []
    async with asyncio.timeout(TIMEOUT):
        while True:
            data, end = await link.read_stdio(name, "", guest_pb2.STREAM_STDOUT)
            pieces.append(data)
            if end:
                break
    return b"".join(pieces).decode()


def _of_the_image(lines: list[str]) -> list[str]:
    """Leave out the root directory itself, which is the upper layer's, and /dev of the runtime."""
    dev = b"./dev".hex()
    ours = (" path=2e mode", f" path={dev} ", f" path={dev}2f")
    return [line for line in lines if not line.startswith(ours)]


def _layered(base: Path, walker: Path) -> Mount:
    layers = trees.make_layers(base / "layers")
    shutil.copy(walker, Path(layers[-1], "walker"))
    for number, layer in enumerate(layers):  # short, and without a colon in the name
        (base / f"l{number}").symlink_to(layer)
    for name in ("upper", "work"):
        (base / name).mkdir()
    lower = ":".join(f"{base}/l{number}" for number in range(len(layers)))
    return Mount("overlay", "overlay", (
        "index=off", f"lowerdir={lower}", f"upperdir={base}/upper", f"workdir={base}/work",
    ))  # fmt: skip


@pytest.mark.parametrize("case", ["fresh", "upper in use", "read-only", "ext4"])
async def test_a_container_sees_the_layers_as_under_runc(
    host: Host, means: Means, walker: Path, case: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    mount = _layered(tmp_path, walker)
    if case == "upper in use":
        (tmp_path / "upper/added").write_text("by somebody before")
        os.mknod(tmp_path / "upper/file", 0o020000, 0)
        (tmp_path / "upper/dir").mkdir()
        os.setxattr(tmp_path / "upper/dir", "trusted.overlay.opaque", b"y")
    if case == "ext4":
        (tmp_path / "tools").mkdir()
        (tmp_path / "tools/mkfs.erofs").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "tools/mkfs.erofs").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/tools:{os.environ['PATH']}")
    expected = _of_the_image(_on_the_host(mount, tmp_path / "host"))
    async with AsyncExitStack() as owned:
        prepared = await prepare_rootfs([mount], "c1", means, readonly=case == "read-only")
        owned.push_async_callback(prepared.close)
        machine = await owned.enter_async_context(start_machine(host.config()))
        await _attach(machine, prepared)
        seen = (await _run(machine, prepared, ["/walker"])).splitlines()
    if case == "ext4":
        expected, seen = (
            [line.partition(".")[0] + line.partition(".")[2][9:] for line in lines]
            for lines in (expected, seen)
        )
    assert _of_the_image(seen) == expected
    assert seen[-1] == "end"
    assert len(seen) > 30


@pytest.mark.virtiofs
@pytest.mark.parametrize("readonly", [False, True])
async def test_a_container_sees_a_directory_of_the_host(
    host: Host, means: Means, walker: Path, readonly: bool, tmp_path: Path
) -> None:
    base = tmp_path / "tree"
    layers = trees.make_layers(base)
    shutil.copy(walker, Path(layers[-1], "walker"))
    directory = layers[-1]
    # The trusted namespace is the host's: virtiofsd has not the capability to show it.
    os.removexattr(Path(directory, "attributes"), "trusted.own")
    expected = _on_the_host(Mount("bind", directory), tmp_path / "host")
    assert needs_share([])
    async with AsyncExitStack() as owned:
        prepared = await prepare_rootfs([], "c1", means, directory=directory, readonly=readonly)
        owned.push_async_callback(prepared.close)
        machine = await owned.enter_async_context(start_machine(host.config(shares=True)))
        await _attach(machine, prepared)
        seen = (await _run(machine, prepared, ["/walker"])).splitlines()
    assert _of_the_image(seen) == _of_the_image(expected)
    assert len(seen) > 20


@pytest.mark.virtiofs
async def test_a_container_changes_a_directory_of_the_host_as_root_would(
    host: Host, means: Means, tmp_path: Path
) -> None:
    program = _compiled("changer", tmp_path)
    ours, theirs = (tmp_path / name / "root" for name in ("host", "guest"))
    for directory in (ours, theirs):
        directory.mkdir(parents=True)
        shutil.copy2(program, directory)
    expected = _on_the_host(Mount("bind", str(ours)), tmp_path / "mounts", "/changer")
    async with AsyncExitStack() as owned:
        prepared = await prepare_rootfs([], "c1", means, directory=str(theirs))
        owned.push_async_callback(prepared.close)
        machine = await owned.enter_async_context(start_machine(host.config(shares=True)))
        await _attach(machine, prepared)
        said = (await _run(machine, prepared, ["/changer"])).splitlines()
    # Of the host's root, device nodes alone are withheld.
    assert expected[-1] == "device: done"
    assert said == [*expected[:-1], "device: Operation not permitted"]
    (ours / "null").unlink()
    made = [_without_times(trees.describe(str(root))) for root in (ours, theirs)]
    assert made[0] == {name: made[1][name] for name in made[0]}
    assert made[0]["suid"]["mode"] == "0o106755"
    assert made[0]["own"]["ids"] == [3_000_000_000, 70_000]
    # What is there beside is where the guest bound the usual devices, which it has to itself.
    more = set(made[1]) - set(made[0])
    assert {name.partition("/")[0] for name in more} == {"dev"}
    assert not [name for name in more if "device" in made[1][name]]


def _without_times(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in entry.items() if key != "mtime" or name == "own"}
        for name, entry in tree.items()
    }


async def test_an_image_in_a_vm_is_not_collected(host: Host, means: Means, tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    mount = Mount("bind", str(tmp_path / "layer"), ("ro",))
    directory = means.cache.directory
    async with start_machine(host.config()) as machine:
        prepared = await prepare_rootfs([mount], "c1", means)
        await _attach(machine, prepared)
        await prepared.close()
        await means.cache.close()
        # QEMU's descriptor is all that holds it now, as after the death of a shim.
        assert collect(directory, 0) == []
        found = await machine.link.probe_disk(prepared.disks[0].serial)
        assert found.size_bytes > 0
    assert [f"e-{key[:16]}" for key in collect(directory, 0)] == [prepared.disks[0].serial]


@pytest.fixture
def shell(tmp_path: Path) -> Mount:
    """An image with a shell in it."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("not installed: busybox-static")
    for name in ("image", "empty", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "image/bin").mkdir()
    shutil.copy(busybox, tmp_path / "image/bin/sh")
    for program in ("cat", "dd", "rm", "sleep"):
        os.symlink("sh", tmp_path / "image/bin" / program)
    lower = f"lowerdir={tmp_path}/empty:{tmp_path}/image"
    upper = (f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    return Mount("overlay", "overlay", (lower, *upper))


def _script(*lines: str) -> list[str]:
    return ["/bin/sh", "-c", "\n".join(lines)]


async def test_a_scratch_disk_ends_where_it_should(host: Host, means: Means, shell: Mount) -> None:
    small = replace(means, scratch_size=48 << 20)
    async with AsyncExitStack() as owned:
        prepared = await prepare_rootfs([shell], "c1", small)
        owned.push_async_callback(prepared.close)
        machine = await owned.enter_async_context(start_machine(host.config()))
        await _attach(machine, prepared)
        before = os.fstat(prepared.disks[1].fd).st_blocks * 512
        said = await _run(machine, prepared, _script(
            "dd if=/dev/zero of=/big bs=1M 2>&1",
            "rm /big && echo again > /small && cat /small",
        ))  # fmt: skip
    assert "No space left on device" in said
    assert said.endswith("again\n")
    assert before < 1 << 20


def _make_volumes(tmp_path: Path) -> None:
    """Make directories to share, and a ConfigMap with two versions."""
    for name in ("rw", "ro", "config/..v1", "config/..v2", "around"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "around/file").write_text("before\n")
    (tmp_path / "around/secret").write_text("hidden")
    for version in ("v1", "v2"):
        (tmp_path / f"config/..{version}/key").write_text(f"{version}\n")
    (tmp_path / "config/..data").symlink_to("..v1")
    (tmp_path / "config/key").symlink_to("..data/key")


@pytest.mark.virtiofs
async def test_volumes_by_share_and_by_push(
    host: Host, means: Means, shell: Mount, tmp_path: Path
) -> None:
    _make_volumes(tmp_path)
    wanted = [("rw", ShareOptions()), ("ro", ShareOptions(readonly=True)),
              ("around/file", ShareOptions())]  # fmt: skip
    async with AsyncExitStack() as owned:
        prepared = await prepare_rootfs([shell], "c1", means)
        owned.push_async_callback(prepared.close)
        sources = {3: GuestSource(kind="pushed", name="/run/void/files/c1/3")}
        for index, (name, options) in enumerate(wanted):
            share = await owned.enter_async_context(start_share(
                str(tmp_path / name), f"v{index}", run_dir=host.run_dir, options=options,
            ))  # fmt: skip
            prepared.shares.append(share)
            sources[index] = GuestSource(kind="share", name=share.tag, path=share.path)
        machine = await owned.enter_async_context(start_machine(host.config(shares=True)))
        await _attach(machine, prepared)
        await owned.enter_async_context(push_volume(
            machine.link, str(tmp_path / "config"), "/run/void/files/c1/3", report=pytest.fail
        ))  # fmt: skip
        mounts = [
            {"destination": "/rw", "type": "bind", "source": "x", "options": ["rbind", "rw"]},
            {"destination": "/ro", "type": "bind", "source": "x", "options": ["rbind", "rw"]},
            {"destination": "/one", "type": "bind", "source": "x", "options": ["rbind", "rw"]},
            {"destination": "/config", "type": "bind", "source": "x", "options": ["rbind", "ro"]},
        ]
        script = _script(
            "echo made > /rw/new", "echo after >> /one",
            "(echo x > /ro/x) 2>&1", "(echo x > /config/x) 2>&1", "cat /config/key",
            "echo go > /rw/ready",
            'while [ "$(cat /config/key)" != v2 ]; do sleep 0.05; done', "cat /config/key",
        )  # fmt: skip
        running = asyncio.create_task(
            _run(machine, prepared, script, mounts=mounts, sources=sources)
        )
        with Watch() as watch:
            watch.follow([os.fsencode(tmp_path / "rw")])
            async with asyncio.timeout(TIMEOUT):
                while not (tmp_path / "rw/ready").exists():
                    watch.changed.clear()
                    await asyncio.wait([running, asyncio.ensure_future(watch.changed.wait())],
                                       return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
                    assert not running.done(), running.result()
        (tmp_path / "config/new").symlink_to("..v2")
        (tmp_path / "config/new").rename(tmp_path / "config/..data")
        said = (await running).splitlines()
    assert [line.rpartition(": ")[2] for line in said] == [
        "Read-only file system", "Read-only file system", "v1", "v2",
    ]  # fmt: skip
    assert (tmp_path / "rw/new").read_text() == "made\n"
    assert (tmp_path / "around/file").read_text() == "before\nafter\n"
    assert not list((tmp_path / "ro").iterdir())


@pytest.mark.virtiofs
async def test_every_port_carries_a_share(
    host: Host, means: Means, shell: Mount, tmp_path: Path
) -> None:
    numbers = range(len(SHARE_PORTS))
    async with AsyncExitStack() as owned:
        prepared = await prepare_rootfs([shell], "c1", means)
        owned.push_async_callback(prepared.close)
        for number in numbers:
            (tmp_path / f"v{number}").mkdir()
            (tmp_path / f"v{number}/name").write_text(f"{number}\n")
            prepared.shares.append(await owned.enter_async_context(
                start_share(str(tmp_path / f"v{number}"), f"v{number}", run_dir=host.run_dir)
            ))  # fmt: skip
        machine = await owned.enter_async_context(start_machine(host.config(shares=True)))
        await _attach(machine, prepared)
        said = await _run(
            machine, prepared, _script("cat /v?/name"),
            mounts=[{"destination": f"/v{number}", "type": "bind", "source": "x",
                     "options": ["rbind", "rw"]} for number in numbers],
            sources={number: GuestSource(kind="share", name=f"v{number}") for number in numbers},
        )  # fmt: skip
    assert said.split() == [str(number) for number in numbers]
