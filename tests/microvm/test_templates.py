"""Keys, soundness and the sharing of templates, with memfds that no VM ever saw."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from shims.microvm import templates
from shims.microvm.plan import Boot, Hardware
from shims.microvm.shelf import connect_shelf
from shims.microvm.templates import (
    Template,
    acquire_template,
    drop_templates,
    list_templates,
    seal_template,
    template_key,
)
from tests.microvm.conftest import end_keeper, keeper_pid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HARDWARE = Hardware("microvm", "tcg", 1, 2048)
BOOT = Boot(2_596_152)
TIMEOUT = 10.0


@pytest.fixture
async def run_dir(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path / "run"
    await end_keeper(tmp_path / "run")


def make_template(key: str = "k", state: bytes = b"state") -> Template:
    fds = []
    for content in (b"memory", state):
        fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.write(fd, content)
        fds.append(fd)
    return seal_template(key, *fds)


class Builder:
    """Counts its builds; holds each until it may go on."""

    def __init__(self) -> None:
        self.builds = 0
        self.started = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def __call__(self) -> Template:
        self.builds += 1
        self.started.set()
        await self.may_finish.wait()
        return make_template()


def test_everything_that_matters_is_in_the_key(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text("1")

    def key(hardware: Hardware = HARDWARE, boot: Boot = BOOT, **changes: str) -> str:
        given = {"qemu": str(qemu), "image_digest": "i", "trust_domain": ""}
        return template_key(hardware, boot, **{**given, **changes})

    keys = [
        key(),
        key(replace(HARDWARE, vcpus=2)),
        key(replace(HARDWARE, ram_mib=8192)),
        key(replace(HARDWARE, network=True)),
        key(replace(HARDWARE, machine="q35")),
        key(replace(HARDWARE, accelerator="kvm")),
        key(boot=replace(BOOT, tsc_khz=2_596_153)),
        key(boot=replace(BOOT, kernel_args=("debug",))),
        key(image_digest="j"),
        key(trust_domain="tenant"),
        key(qemu="/bin/sh"),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
    qemu.write_text("22")  # an upgrade
    assert key() != keys[0]


def test_the_plan_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = template_key(HARDWARE, BOOT, qemu="/bin/sh", image_digest="", trust_domain="")
    monkeypatch.setattr("shims.microvm.plan.DISK_BUS", "unused")
    same = template_key(HARDWARE, BOOT, qemu="/bin/sh", image_digest="", trust_domain="")
    monkeypatch.setattr("shims.microvm.plan._SANDBOX", "on")
    after = template_key(HARDWARE, BOOT, qemu="/bin/sh", image_digest="", trust_domain="")
    assert before == same
    assert after != before


def test_a_sealed_template_cannot_be_changed() -> None:
    template = make_template()
    for fd in (template.memory, template.state):
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"!", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    assert template.is_sound()
    assert not replace(template, digest="0" * 64).is_sound()
    template.close()


def test_each_reader_of_the_state_has_its_own_offset() -> None:
    template = make_template(state=b"0123456789")
    readers = [template.open_state() for _ in range(2)]
    assert [os.read(reader, 4) for reader in readers] == [b"0123", b"0123"]
    for reader in readers:
        os.close(reader)
    template.close()


async def test_the_second_gets_what_the_first_built(run_dir: Path) -> None:
    builder = Builder()
    for _ in range(3):
        template = await acquire_template("k", run_dir, builder, timeout=TIMEOUT)
        assert os.pread(template.state, 100, 0) == b"state"
        template.close()
    assert builder.builds == 1
    assert [entry["key"] for entry in await list_templates(run_dir)] == ["k"]
    assert await drop_templates(run_dir, "k") == ["k"]
    assert await list_templates(run_dir) == []


async def test_many_at_once_build_once(run_dir: Path) -> None:
    builder = Builder()
    builder.may_finish.clear()
    tasks = [
        asyncio.ensure_future(acquire_template("k", run_dir, builder, timeout=TIMEOUT))
        for _ in range(5)
    ]
    await asyncio.wait(tasks, timeout=0.2)
    assert builder.builds == 1
    builder.may_finish.set()
    for template in await asyncio.gather(*tasks):
        template.close()
    assert builder.builds == 1


async def test_a_failed_build_is_the_next_ones_task(run_dir: Path) -> None:
    async def fail() -> Template:
        raise ConnectionError("the boot hung")

    with pytest.raises(ConnectionError):
        await acquire_template("k", run_dir, fail, timeout=TIMEOUT)
    builder = Builder()
    (await acquire_template("k", run_dir, builder, timeout=TIMEOUT)).close()
    assert builder.builds == 1


@pytest.mark.parametrize("lie", ["digest", "key"])
async def test_a_damaged_template_is_dropped_and_rebuilt(run_dir: Path, lie: str) -> None:
    template = make_template()
    facts = {"key": "k", "digest": template.digest, "built_at": 0.0, lie: "something else"}
    async with await connect_shelf(run_dir) as shelf:
        request = {"op": "put", "key": "k", "facts": facts}
        await shelf.ask(request, [template.memory, template.state])
    template.close()
    builder = Builder()
    rebuilt = await acquire_template("k", run_dir, builder, timeout=TIMEOUT)
    assert builder.builds == 1
    assert rebuilt.is_sound()
    rebuilt.close()


async def test_a_keeper_that_dies_while_we_build_costs_nothing(run_dir: Path) -> None:
    async def build_and_kill() -> Template:
        os.kill(await keeper_pid(run_dir), signal.SIGKILL)
        return make_template()

    template = await acquire_template("k", run_dir, build_and_kill, timeout=TIMEOUT)
    assert template.is_sound()
    template.close()


async def test_what_was_built_while_the_keeper_died_is_kept_by_the_next(run_dir: Path) -> None:
    builder = Builder()
    builder.may_finish.clear()
    tasks = [
        asyncio.ensure_future(acquire_template("k", run_dir, builder, timeout=TIMEOUT))
        for _ in range(6)
    ]
    await asyncio.wait_for(builder.started.wait(), TIMEOUT)
    os.kill(await keeper_pid(run_dir), signal.SIGKILL)
    await asyncio.wait(tasks, timeout=0.2)
    builder.may_finish.set()
    for template in await asyncio.gather(*tasks):
        template.close()
    # The first, and one of those that waited: a new keeper knows nothing of the first.
    assert builder.builds <= 2
    assert [entry["key"] for entry in await list_templates(run_dir)] == ["k"]


async def test_who_waited_too_long_builds_and_it_is_kept(run_dir: Path) -> None:
    slow, quick = Builder(), Builder()
    slow.may_finish.clear()
    slower = asyncio.ensure_future(acquire_template("k", run_dir, slow, timeout=TIMEOUT))
    await asyncio.wait_for(slow.started.wait(), TIMEOUT)
    (await acquire_template("k", run_dir, quick, timeout=0.1)).close()
    assert quick.builds == 1
    assert [entry["key"] for entry in await list_templates(run_dir)] == ["k"]
    slow.may_finish.set()
    (await slower).close()


async def test_a_keeper_that_hangs_costs_moments(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (await acquire_template("k", run_dir, Builder(), timeout=TIMEOUT)).close()
    monkeypatch.setattr("shims.microvm.shelf._ANSWER_TIMEOUT", 0.05)
    pid = await keeper_pid(run_dir)
    os.kill(pid, signal.SIGSTOP)
    try:
        builder = Builder()
        async with asyncio.timeout(TIMEOUT / 2):
            (await acquire_template("k", run_dir, builder, timeout=TIMEOUT)).close()
        assert builder.builds == 1
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_without_any_keeper_everybody_builds(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(templates, "connect_shelf", refuse)
    builder = Builder()
    for _ in range(2):
        (await acquire_template("k", run_dir, builder, timeout=TIMEOUT)).close()
    assert builder.builds == 2


async def test_nothing_leaks(run_dir: Path) -> None:
    (await acquire_template("k", run_dir, Builder(), timeout=TIMEOUT)).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        (await acquire_template("k", run_dir, Builder(), timeout=TIMEOUT)).close()
    assert len(os.listdir("/proc/self/fd")) == before
