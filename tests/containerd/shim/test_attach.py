"""The host's side of a container: the guest image is there when the first container wants it."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from protos.gen.containerd.types import mount_pb2
from shims.containerd.shim import attach
from shims.containerd.shim.attach import LocalSupplies, trust_domain
from shims.containerd.shim.config import Settings
from shims.containerd.shim.daemon import raise_oom_score
from shims.containerd.shim.sizing import VmSize
from shims.containerd.shim.supplies import Wanted
from shims.containerd.shim.volumes import Volume, Way
from shims.core.errors import Conflict, DeadlineExceeded, InputError, NotFound
from shims.guest.image.host import installed_kernels
from shims.microvm import images

if TYPE_CHECKING:
    from pathlib import Path

    from shims.containerd.shim.daemon import Launch
    from shims.guest.image.find import GuestImage


def supplies(state: Path, **environ: str) -> LocalSupplies:
    early = SimpleNamespace(resources=None)
    settings = {**os.environ, "VOID_SHIMS_STATE": str(state), "VOID_SHIMS_RUN": str(state / "run")}
    settings["VOID_SHIMS_LIBRARIES"] = next(p for p in sys.path if p.endswith("site-packages"))
    return LocalSupplies(settings | environ, cast("Launch", early))


@pytest.mark.skipif(
    not installed_kernels(), reason="needs a kernel package (linux-image-cloud-amd64)"
)
async def test_a_missing_guest_image_is_built(tmp_path: Path) -> None:
    local = supplies(tmp_path)
    await local._require_image("")
    image = local._image("")
    assert image.kernel.is_file()
    assert image.directory.is_relative_to(tmp_path)


async def test_a_named_image_is_not(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no guest image in"):
        await supplies(tmp_path)._require_image(str(tmp_path / "mine"))


async def test_what_the_builder_says_is_the_error(tmp_path: Path) -> None:
    state = tmp_path / "a file"
    state.write_text("")
    with pytest.raises(Conflict, match="no guest image: "):
        await supplies(state)._require_image("")


def test_the_trust_domain_always_counts() -> None:
    def domain(template: str, given: str, namespace: str) -> str:
        return trust_domain(Settings(template=template, trust_domain=given), namespace)

    assert domain("shared", "", "one") == domain("shared", "", "two")
    assert domain("shared", "a", "one") == domain("shared", "a", "two")
    assert domain("shared", "a", "one") != domain("shared", "b", "one")
    kinds = {domain(t, d, n) for t in ("shared", "per-namespace") for d in ("", "a", "one/a")
             for n in ("one", "two")}  # fmt: skip
    assert len(kinds) == 3 + 6  # with per-namespace each namespace has its own, and each domain


def test_the_vm_has_the_containers_rank_and_a_limit(tmp_path: Path) -> None:
    local = supplies(tmp_path)
    local._images[""] = cast("GuestImage", SimpleNamespace())
    config = local.machine_config(
        "c", "default", Settings(), VmSize(1, 64), {"process": {"oomScoreAdj": 777}}, shares=False
    )
    assert config.oom_score_adj == 777
    assert config.memory_limit == config.whole_size


@pytest.mark.parametrize(
    ("machine", "shares", "chosen"),
    [("auto", False, "microvm"), ("auto", True, "q35"), ("q35", False, "q35"), ("q35", True, "q35"),
     ("microvm", False, "microvm"), ("microvm", True, "")],
)  # fmt: skip
def test_microvm_is_an_order_where_auto_is_a_wish(
    tmp_path: Path, machine: str, shares: bool, chosen: str
) -> None:
    local = supplies(tmp_path)
    local._images[""] = cast("GuestImage", SimpleNamespace())
    make = partial(local.machine_config, "c", "n", Settings(machine=machine), VmSize(1, 64), {})
    if chosen:
        assert make(shares=shares).machine_type == chosen
        return
    with pytest.raises(
        InputError, match=r"^machine: got 'microvm'; allowed: q35 or auto"
    ) as caught:
        make(shares=shares)
    assert "leave out dev.void-box.vm.machine" in caught.value.hint


async def test_a_share_for_a_microvm_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    wanted = Wanted(
        "c", str(tmp_path), {}, [], [Volume(0, Way.SHARE, "/tmp", False, False)],
        Settings(machine="microvm"),
    )  # fmt: skip
    local = supplies(tmp_path)
    local._images[""] = cast("GuestImage", SimpleNamespace())
    async with AsyncExitStack() as owned:
        with pytest.raises(InputError, match=r"^machine: "):
            await local.prepare(wanted, owned)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("inherited", "ours"), [("-999", "-998"), ("0", "1"), ("1000", "1000")])
def test_a_shim_goes_before_containerd(tmp_path: Path, inherited: str, ours: str) -> None:
    score = tmp_path / "oom_score_adj"
    score.write_text(f"{inherited}\n")
    raise_oom_score(str(score))
    assert score.read_text().split()[0] == ours
    raise_oom_score(str(tmp_path / "none"))  # is said, and no more than that


async def test_preparing_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(attach, "_PREPARE_TIMEOUT", 0.01)
    monkeypatch.setattr(LocalSupplies, "_require_image", never)
    wanted = cast("Wanted", SimpleNamespace(container_id="c", settings=Settings()))
    async with AsyncExitStack() as owned:
        with pytest.raises(DeadlineExceeded, match="container c is not prepared"):
            await supplies(tmp_path).prepare(wanted, owned)


def test_create_ends_before_kubelet_gives_up() -> None:
    assert attach._BUILD_TIMEOUT < attach._PREPARE_TIMEOUT < 120
    assert images._BUILD_TIMEOUT < attach._PREPARE_TIMEOUT


@pytest.mark.parametrize(("count", "directory"), [(9, False), (8, True)])
async def test_more_shares_than_ports_are_refused_before_any_is_made(
    tmp_path: Path, count: int, directory: bool
) -> None:
    local = supplies(tmp_path)
    local._images[""] = cast("GuestImage", SimpleNamespace())
    volumes = [Volume(n, Way.SHARE, f"/srv/{n}", False, False) for n in range(count)]
    root = {"path": "/srv/root"} if directory else {}
    wanted = Wanted("c", str(tmp_path), {"root": root}, [_layer()], volumes, Settings())
    async with AsyncExitStack() as owned:
        with pytest.raises(InputError, match=r"mounts\[\d\]\.source.* 8 .* these are 9"):
            await local.prepare(wanted, owned)
    assert not (tmp_path / "run").exists()


def _layer() -> mount_pb2.Mount:
    return mount_pb2.Mount(type="bind", source="/srv/layer", options=["ro"])
