"""The pure parts: decompression, bzImages, module order, archives."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shims.core.errors import InputError, NotFound, NotSupported, ShimError
from shims.guest.image.cpio import Entry, write_cpio
from shims.guest.image.decompress import compression_of, decompress
from shims.guest.image.host import choose_kernel, installed_kernels
from shims.guest.image.kernel import extract_vmlinux, has_pvh_entry, kernel_release
from shims.guest.image.modules import ModuleTree, plan_modules
from tests.guest.image.builders import bzimage, compressed, elf_kernel, install_kernel

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ["gzip", "bzip2", "xz", "lzma", "lz4", "zstd", "lzo"]
TOOLS = {"lz4": "lz4", "zstd": "zstd", "lzo": "lzop"}


def _need(kind: str) -> None:
    if kind in TOOLS and shutil.which(TOOLS[kind]) is None:
        pytest.skip(f"not installed: {TOOLS[kind]}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_comes_out_of_each_compression_as_it_went_in(kind: str) -> None:
    _need(kind)
    kernel = elf_kernel(filler=9 << 20)  # more than one LZ4 block
    payload = compressed(kind, kernel)
    assert compression_of(payload) == kind
    assert extract_vmlinux(bzimage(payload), what="test") == kernel


def test_a_kernel_that_is_not_compressed_is_taken_as_it_is() -> None:
    kernel = elf_kernel()
    assert extract_vmlinux(bzimage(kernel), what="test") == kernel
    assert extract_vmlinux(kernel, what="test") is kernel


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_stream_is_an_input_error_that_names_the_file(kind: str) -> None:
    _need(kind)
    payload = compressed(kind, elf_kernel())
    for damaged in (payload[: len(payload) // 2], payload[:40] + bytes(len(payload) - 40)):
        with pytest.raises(InputError, match="/boot/vmlinuz"):
            extract_vmlinux(bzimage(damaged), what="/boot/vmlinuz")


@given(st.binary(max_size=400), st.sampled_from(KINDS))
def test_no_bytes_do_more_than_raise_an_input_error(noise: bytes, kind: str) -> None:
    magic = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0", "lzma": b"\x5d\0\0",
             "lz4": b"\x02\x21\x4c\x18", "zstd": b"\x28\xb5\x2f\xfd"}.get(kind, b"")  # fmt: skip
    try:
        decompress(magic + noise, what="noise")
    except ShimError:
        pass


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"", "a bzImage or an ELF"),
        (b"#!/bin/sh\n" + bytes(4000), "a bzImage or an ELF"),
        (bzimage(b"x" * 100, protocol=0x0206), "boot protocol 2.06"),
        (bzimage(compressed("gzip", elf_kernel()))[:4000], "cut short"),
        (bzimage(compressed("gzip", b"not a kernel")), "an ELF kernel"),
        (bzimage(b"unheard-of"), "a compressed stream"),
    ],
)
def test_what_is_no_kernel_is_refused_with_the_reason(image: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        extract_vmlinux(image, what="given")


def test_the_release_is_read_from_the_image_and_not_from_its_name() -> None:
    kernel = elf_kernel("6.9.1-banner")
    assert kernel_release(bzimage(kernel, "6.9.1-header")) == "6.9.1-header"
    assert kernel_release(kernel) == "6.9.1-banner"
    assert kernel_release(b"noise") == ""


def test_the_pvh_entry_is_found_by_its_note() -> None:
    assert has_pvh_entry(elf_kernel())
    assert not has_pvh_entry(elf_kernel(pvh=False))
    assert not has_pvh_entry(b"\x7fELF\x01\x01" + bytes(100))


def test_cloud_kernels_come_first_then_newer_ones(tmp_path: Path) -> None:
    releases = ["6.1.0-9-amd64", "6.1.0-56-amd64", "5.10.0-8-cloud-amd64", "5.10.0-30-cloud-amd64"]
    for release in releases:
        install_kernel(tmp_path, release)
    (tmp_path / "boot/vmlinuz-7.0.0-cloud-amd64").write_bytes(b"")  # its modules are gone
    found = [kernel.release for kernel in installed_kernels(tmp_path)]
    assert found == [releases[3], releases[2], releases[1], releases[0]]


def test_a_host_without_a_kernel_learns_which_package_to_install(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        choose_kernel(tmp_path)
    assert caught.value.hint == "apt-get install linux-image-cloud-amd64"
    assert "\n" not in str(caught.value)


def test_modules_load_after_what_they_need_and_builtin_ones_not_at_all(tmp_path: Path) -> None:
    install_kernel(tmp_path)
    tree = ModuleTree.read(tmp_path / "lib/modules/6.1.0-test")
    names = [module.name for module in plan_modules(tree)]
    assert names == [
        "virtio_ring", "virtio", "virtio_mmio", "virtio_console", "scsi_mod", "virtio_scsi",
        "sd_mod", "crc32c_intel", "libcrc32c", "erofs", "overlay", "virtio_rng",
    ]  # fmt: skip
    assert [*names[-1:], "unwanted"] == [
        module.name for module in plan_modules(tree, ["unwanted"])
    ][-2:]


def test_what_a_module_asks_for_softly_is_loaded_before_it(tmp_path: Path) -> None:
    install_kernel(tmp_path)
    directory = tmp_path / "lib/modules/6.1.0-test"
    with (directory / "modules.dep").open("a") as table:
        table.write("kernel/crc32c_generic.ko:\nkernel/ring.ko:\n")
    with (directory / "modules.softdep").open("a") as table:
        table.write("softdep erofs pre: ring\nsoftdep ring pre: erofs post: overlay\n")
    names = [module.name for module in plan_modules(ModuleTree.read(directory))]
    assert names.index("crc32c_generic") < names.index("libcrc32c")
    assert names.index("ring") < names.index("erofs")
    assert "unwanted" not in names
    for name in ("modules.softdep", "modules.alias"):
        (directory / name).unlink()
    assert "crc32c_intel" not in [m.name for m in plan_modules(ModuleTree.read(directory))]


def test_a_kernel_that_lacks_what_guests_need_is_refused_by_name(tmp_path: Path) -> None:
    install_kernel(tmp_path)
    table = tmp_path / "lib/modules/6.1.0-test/modules.dep"
    kept = [line for line in table.read_text().splitlines() if "erofs" not in line]
    table.write_text("\n".join(line for line in kept if "virtio_mmio" not in line))
    with pytest.raises(NotSupported, match="lacks erofs, virtio_mmio or virtio_pci"):
        plan_modules(ModuleTree.read(table.parent))
    with pytest.raises(NotSupported, match="lacks erofs, no_such, virtio_mmio or"):
        plan_modules(ModuleTree.read(table.parent), ["no-such"])


def test_an_archive_is_what_cpio_understands(tmp_path: Path) -> None:
    entries = [
        Entry.file("/init", b"#!", executable=True),
        Entry.file("/lib/modules/a.ko", b"odd"),
        Entry("/dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry.directory("/lib-x"),
    ]
    archive = b"".join(write_cpio(entries))
    assert archive == b"".join(write_cpio(reversed(entries)))
    assert len(archive) % 512 == 0
    if shutil.which("cpio") is None:
        pytest.skip("not installed: cpio")
    listed = subprocess.run(
        ["cpio", "-itv", "--quiet"], input=archive, capture_output=True, check=True, timeout=10
    ).stdout.decode()
    assert [line.split()[-1] for line in listed.splitlines()] == [
        "dev", "dev/console", "init", "lib", "lib/modules", "lib/modules/a.ko", "lib-x",
    ]  # fmt: skip
    subprocess.run(
        ["cpio", "-id", "--quiet", "init", "lib/modules/a.ko"],
        input=archive, cwd=tmp_path, check=True, timeout=10,
    )  # fmt: skip
    assert (tmp_path / "lib/modules/a.ko").read_bytes() == b"odd"
    assert os.access(tmp_path / "init", os.X_OK)


@given(st.dictionaries(st.from_regex(r"(/[a-z]{1,5}){1,3}", fullmatch=True), st.binary()))
def test_every_record_is_aligned_and_whole(files: dict[str, bytes]) -> None:
    archive = b"".join(write_cpio(Entry.file(path, content) for path, content in files.items()))
    at, seen = 0, {}
    while True:
        assert archive[at : at + 6] == b"070701"
        size, name_size = (int(archive[at + o : at + o + 8], 16) for o in (54, 94))
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        begin = at + 110 + name_size + (-(110 + name_size) % 4)
        if name == "TRAILER!!!":
            break
        seen["/" + name] = archive[begin : begin + size]
        at = begin + size + (-size % 4)
    leaves = {path for path in files if not any(o.startswith(path + "/") for o in files)}
    assert all(seen[path] == files[path] for path in leaves)


def test_a_header_has_the_fields_of_the_format() -> None:
    (header, *_) = write_cpio([Entry.file("/x", b"abc")])
    fields = [int(header[at : at + 8], 16) for at in range(6, 110, 8)]
    assert fields == [1, stat.S_IFREG | 0o644, 0, 0, 1, 0, 3, 0, 0, 0, 0, 2, 0]
    assert struct.calcsize("6s" + "8s" * 13) == 110
