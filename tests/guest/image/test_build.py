"""Building, finding, checking and collecting whole images."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from shims.cli.guest import void_guest
from shims.core.errors import InputError, NotFound, TargetError
from shims.guest.image import GuestImage, build, find, find_guest_image, hold_guest_image
from shims.guest.image.build import build_guest_image
from shims.guest.image.care import collect_garbage, verify_image
from shims.guest.image.host import choose_kernel
from tests.guest.image.builders import bzimage, elf_kernel, install_kernel, static_program


@pytest.fixture
def host(tmp_path: Path) -> Path:
    install_kernel(tmp_path / "host")
    return tmp_path / "host"


@pytest.fixture
def init(tmp_path: Path) -> Path:
    return static_program(tmp_path / "void-init")


def _build(host: Path, init: Path, state: Path) -> GuestImage:
    return build_guest_image(root=host, init=init, state=state)


def test_an_image_has_what_the_guest_needs(host: Path, init: Path, tmp_path: Path) -> None:
    image = _build(host, init, tmp_path / "state")
    assert image.release == "6.1.0-test"
    assert image.kernel.read_bytes() == elf_kernel()
    archive = image.initramfs.read_bytes()
    order = "".join(f"/lib/modules/{name}.ko\n" for name in image.modules)
    assert order.encode() in archive
    assert init.read_bytes() in archive
    assert image.directory.stat().st_mode & 0o077 == 0
    manifest = json.loads((image.directory / "manifest.json").read_bytes())
    assert manifest["digest"] == image.digest
    assert len(manifest["inputs"]) == 2 + len(image.modules)


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_compressed_modules_give_the_same_image(
    host: Path, init: Path, tmp_path: Path, suffix: str
) -> None:
    install_kernel(tmp_path / "other", suffix=suffix)
    plain = _build(host, init, tmp_path / "a")
    assert _build(tmp_path / "other", init, tmp_path / "b").digest == plain.digest


def test_two_builds_are_the_same_byte_for_byte(host: Path, init: Path, tmp_path: Path) -> None:
    one, two = (_build(host, init, tmp_path / name) for name in "ab")
    assert one.digest == two.digest
    for name in ("vmlinux", "initramfs.cpio", "manifest.json"):
        assert (one.directory / name).read_bytes() == (two.directory / name).read_bytes()


def test_a_second_build_is_a_look_up(host: Path, init: Path, tmp_path: Path) -> None:
    told: list[str] = []
    one = _build(host, init, tmp_path)
    begin = time.monotonic()
    two = build_guest_image(root=host, init=init, state=tmp_path, progress=told.append)
    assert (two, told) == (one, [])
    assert time.monotonic() - begin < 0.5


def test_a_new_void_init_gives_a_new_image(host: Path, init: Path, tmp_path: Path) -> None:
    one = _build(host, init, tmp_path)
    init.write_bytes(init.read_bytes() + b"newer")
    two = _build(host, init, tmp_path)
    assert two.digest != one.digest
    assert one.kernel.exists()


def test_a_touched_input_is_built_anew_into_the_same_image(
    host: Path, init: Path, tmp_path: Path
) -> None:
    one = _build(host, init, tmp_path)
    os.utime(init, (1, 1))
    told: list[str] = []
    two = build_guest_image(root=host, init=init, state=tmp_path, progress=told.append)
    assert two == one
    assert told


def _build_in_process(host: str, init: str, state: str, gate: object, told: object) -> None:
    gate.wait(20)  # type: ignore[attr-defined]
    image = build_guest_image(
        root=Path(host), init=Path(init), state=Path(state),
        progress=lambda _: told.put("work"),  # type: ignore[attr-defined]
    )  # fmt: skip
    told.put(image.digest)  # type: ignore[attr-defined]


def test_eight_processes_that_ask_at_once_build_once(
    host: Path, init: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    gate, told = context.Barrier(8), context.Queue()
    arguments = (str(host), str(init), str(tmp_path / "state"), gate, told)
    crowd = [context.Process(target=_build_in_process, args=arguments) for _ in range(8)]
    for process in crowd:
        process.start()
    digests: list[str] = []
    work = 0
    while len(digests) < 8:
        answer = told.get(timeout=30)
        work += answer == "work"
        digests += [answer] if answer != "work" else []
    for process in crowd:
        process.join(30)
    assert len(set(digests)) == 1
    assert work == 3  # the steps of one build
    assert not list((tmp_path / "state/guest").glob(".*"))


def test_what_a_dead_builder_left_is_cleared_away(host: Path, init: Path, tmp_path: Path) -> None:
    left = tmp_path / "guest/.building-dead"
    left.mkdir(parents=True)
    (left / "vmlinux").write_bytes(b"half")
    _build(host, init, tmp_path)
    assert not left.exists()


def test_damage_is_found_and_mended(host: Path, init: Path, tmp_path: Path) -> None:
    image = _build(host, init, tmp_path)
    assert verify_image(image) == []
    with image.kernel.open("r+b") as file:
        file.seek(1000)
        file.write(b"flip")
    (wrong,) = verify_image(image)
    assert wrong.startswith("vmlinux: SHA-256 is")
    image.kernel.write_bytes(b"short")
    assert "another size" in verify_image(image)[0]
    assert _build(host, init, tmp_path) == image
    assert verify_image(image) == []


def _flip(path: Path) -> None:
    """Change a byte; nothing else about the file that a look would show."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_damage_of_unchanged_size_is_mended(host: Path, init: Path, tmp_path: Path) -> None:
    image = _build(host, init, tmp_path)
    _flip(image.kernel)
    assert _build(host, init, tmp_path) == image
    assert verify_image(image) == []
    _flip(image.initramfs)
    os.utime(init, (1, 1))  # built anew, into a place that is taken
    assert _build(host, init, tmp_path) == image
    assert verify_image(image) == []
    assert not list((tmp_path / "guest").glob(".*"))


def test_garbage_collection_takes_what_is_damaged(host: Path, init: Path, tmp_path: Path) -> None:
    image = _build(host, init, tmp_path)
    _flip(image.kernel)
    assert collect_garbage(tmp_path).removed == (image.digest,)
    assert not image.directory.exists()


def test_without_a_kernel_package_the_last_default_image_serves(
    host: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "VOID_INIT", init)
    monkeypatch.setattr(find, "choose_kernel", lambda: choose_kernel(tmp_path / "nothing"))
    own = tmp_path / "own"
    own.write_bytes(elf_kernel("5.4.0-own"))
    initramfs = tmp_path / "i"
    initramfs.write_bytes(b"070701" + bytes(600))
    build_guest_image(kernel=own, initramfs=initramfs, state=tmp_path)
    with pytest.raises(NotFound, match="no kernel"):
        find_guest_image(state=tmp_path)
    ours = build_guest_image(root=host, init=init, state=tmp_path)
    os.utime(ours.directory / "manifest.json", (1, 1))
    assert find_guest_image(state=tmp_path) == ours


def test_what_is_no_whole_linux_kernel_is_refused(tmp_path: Path) -> None:
    kernel, initramfs = tmp_path / "k", tmp_path / "i"
    initramfs.write_bytes(b"070701" + bytes(600))
    whole = elf_kernel()
    longer = whole[:96] + (1 << 20).to_bytes(8, "little") + whole[104:]  # its note segment
    cases = {
        b"\x7fELF" + bytes(500): "a Linux kernel",
        whole[:50] + b"Linux version 6.1.0 x": "a whole ELF",
        whole[:64] + b"Linux version 6.1.0 x": "a whole ELF",
        longer: "a whole ELF",
    }
    for content, message in cases.items():
        kernel.write_bytes(content)
        with pytest.raises(InputError, match=message):
            build_guest_image(kernel=kernel, initramfs=initramfs, state=tmp_path / "state")


def test_a_place_that_cannot_be_written_is_told_as_such(
    host: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TargetError, match="/proc/nowhere"):
        _build(host, init, Path("/proc/nowhere"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TargetError, match="No space left"):
        _build(host, init, tmp_path)


@pytest.mark.parametrize("junk", [b"", b"{}", b"[]", b"\xff", b'{"digest": 1, "inputs": []}'])
def test_a_damaged_index_is_no_obstacle(
    host: Path, init: Path, tmp_path: Path, junk: bytes
) -> None:
    image = _build(host, init, tmp_path)
    (entry,) = (tmp_path / "guest/index").glob("*.json")
    entry.write_bytes(junk)
    assert _build(host, init, tmp_path) == image


def test_garbage_is_what_is_neither_new_nor_in_use(host: Path, init: Path, tmp_path: Path) -> None:
    images = []
    for version in range(4):
        init.write_bytes(b"\x7fELF" + bytes([version]))
        images.append(_build(host, init, tmp_path))
        os.utime(images[-1].directory / "manifest.json", (version, version))
    with hold_guest_image(images[0]):
        dry = collect_garbage(tmp_path, dry_run=True)
        done = collect_garbage(tmp_path)
    assert set(dry.removed) == set(done.removed) == {images[1].digest, images[2].digest}
    assert {image.digest for image in images if image.kernel.exists()} == set(done.kept)
    assert done.freed > 0
    assert set(collect_garbage(tmp_path).removed) == {images[0].digest}
    with pytest.raises(NotFound), hold_guest_image(images[0]):
        pass
    assert len(list((tmp_path / "guest/index").iterdir())) == 1


def test_explicit_files_are_taken_as_they_are(tmp_path: Path) -> None:
    kernel, initramfs = tmp_path / "k", tmp_path / "i"
    kernel.write_bytes(elf_kernel("5.4.0-own"))
    initramfs.write_bytes(b"070701" + bytes(600))
    image = build_guest_image(kernel=kernel, initramfs=initramfs, state=tmp_path / "state")
    assert (image.release, image.modules) == ("5.4.0-own", ())
    assert image.initramfs.read_bytes() == initramfs.read_bytes()
    assert find_guest_image(image.directory) == image


def test_a_kernel_without_the_pvh_entry_stays_a_bzimage(init: Path, tmp_path: Path) -> None:
    source = bzimage(elf_kernel(pvh=False))
    install_kernel(tmp_path / "host", kernel=source)
    image = _build(tmp_path / "host", init, tmp_path / "state")
    assert image.kernel.read_bytes() == source


def test_nonsense_is_refused_by_name(host: Path, init: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"nothing of use")
    with pytest.raises(InputError, match="kernel: "):
        build_guest_image(kernel=junk, root=host, init=init, state=tmp_path)
    with pytest.raises(InputError, match="initramfs: "):
        build_guest_image(initramfs=junk, root=host, init=init, state=tmp_path)
    with pytest.raises(InputError, match="void-init: "):
        build_guest_image(init=junk, root=host, state=tmp_path)
    kernel = tmp_path / "other"
    kernel.write_bytes(elf_kernel("9.9.9"))
    with pytest.raises(NotFound, match="no modules of its release"):
        build_guest_image(kernel=kernel, root=host, init=init, state=tmp_path)
    assert not list((tmp_path / "guest").glob(".building*"))


def test_finding_costs_the_shim_no_heavy_import() -> None:
    code = (
        "import sys, shims.guest.image; "
        "heavy = {'click', 'rich', 'pydantic', 'asyncio', 'subprocess', 'lzma'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.strip() == "[]"


def test_the_command_line(
    host: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOID_SHIMS_STATE", str(tmp_path / "state"))
    kernel = next((host / "boot").iterdir())
    initramfs = tmp_path / "i"
    initramfs.write_bytes(b"070701" + bytes(600))
    run = CliRunner().invoke
    arguments = ["build", "--kernel", str(kernel), "--initramfs", str(initramfs), "-o", "json"]
    built = json.loads(run(void_guest, arguments, catch_exceptions=False).stdout)
    beginning = built["digest"][:6]
    shown = run(void_guest, ["show", beginning, "-o", "json"], catch_exceptions=False)
    assert json.loads(shown.stdout) == built
    everything = run(void_guest, ["show", "--all", "-o", "json"], catch_exceptions=False)
    assert json.loads(everything.stdout) == [built]
    assert "is intact" in run(void_guest, ["verify", beginning], catch_exceptions=False).stdout
    for nonsense in ("/foo", "..", "*", "ABC"):
        with pytest.raises(InputError, match="digest"):
            run(void_guest, ["show", nonsense], catch_exceptions=False)
    index = tmp_path / "state/guest/index"
    assert len(list(index.iterdir())) == 1
    _flip(Path(built["directory"], "vmlinux"))
    assert run(void_guest, ["verify", beginning], catch_exceptions=False).exit_code == 1
    assert list(index.iterdir()) == []  # nobody boots it any more
    Path(built["directory"], "vmlinux").write_bytes(b"?")
    verdict = run(void_guest, ["gc", "-o", "json"], catch_exceptions=False)
    assert json.loads(verdict.stdout)["removed"] == [built["digest"]]


def test_help_says_what_it_is_for() -> None:
    for command in ([], ["build"], ["show"], ["verify"], ["gc"]):
        done = CliRunner().invoke(void_guest, [*command, "--help"])
        assert done.exit_code == 0
        assert len(done.stdout) > 200
