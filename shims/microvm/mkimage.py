"""Helper process: make one image of a chain of directories, and publish it in the cache.

The chain is mounted as containerd's overlay would be, read-only, in a mount namespace of our own,
so that whiteouts, opaque directories and redirects mean what the host's kernel says they mean, and
nothing is left on the host however we end. Layers are named by short symbolic links in a private
tmpfs: overlay's options have one page, in which long paths and odd characters have no place.

An image is erofs, which is small and quick to make. Where mkfs.erofs is missing or fails (version
1.5 cannot do names of 255 bytes), or would take minutes for files that are mostly holes, it is
ext4: larger, with times in whole seconds, but complete.

Writes one line of JSON to stdout as soon as the image can be used, then syncs it and notes its
hash, at lowest priority. Until that is done the image counts for this boot of the host only. If it
cannot be made, the line says why, and how many bytes of the disk it would take.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from shims.microvm import superblock, syscalls
from shims.microvm.helpers import helper_environment, helper_request
from shims.microvm.image_store import boot_id, is_at, note

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_CAPABILITIES = frozenset({1, 2, 21})
"""DAC_OVERRIDE and DAC_READ_SEARCH to read every file, SYS_ADMIN for trusted.* attributes."""
_SPARSE_FROM = 1 << 22
"""Bytes from which on a file with holes is worth a slower way of building."""
_CHUNK = 1 << 16
_CHUNKED_UP_TO = 256 << 20
"""Bytes that may be packed in that way: mkfs.erofs reads and hashes holes, and all other files, at
100 to 160 MB/s. mke2fs skips them."""
_METADATA = 16 << 20
_NICE = 19
_READ = 1 << 20


class _Failed(Exception):
    """A sentence for the shim's caller."""


class _Built(NamedTuple):
    """An image's descriptor and file system; none when somebody else has built it."""

    fd: int
    fstype: str


def main() -> None:
    """Carry out the request; exit with 0 when the image is (or was already) there."""
    request = helper_request()
    try:
        syscalls.die_with_parent(request["parent"])
        built = _build(request)
    except (_Failed, OSError) as error:
        _answer({"error": str(error), "needs": request.get("needs", 0)})
        sys.exit(1)
    _answer({"error": "", "fstype": built.fstype})
    if request["name"] and built.fstype:
        _settle(request, built)


def _answer(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _build(request: dict[str, Any]) -> _Built:
    os.chdir(request["directory"])  # before the mount namespace hides anything
    name = request["name"]
    if not name:
        return _Built(request["fd"], _make(request, request["fd"]))
    draft, final = f"{name}.part", f"{name}.image"
    with contextlib.ExitStack() as held:
        _lock(f"{name}.lock", held)
        if os.path.exists(final):
            return _Built(-1, "")  # waited for another builder, which published
        image = _lock(draft, held)
        fstype = _make(request, image)
        note(name, {**_facts(request, image, fstype), "boot": boot_id()})
        fcntl.flock(image, fcntl.LOCK_SH)  # from here on an image in use
        os.rename(draft, final)
        return _Built(os.dup(image), fstype)


def _facts(request: dict[str, Any], image: int, fstype: str) -> dict[str, Any]:
    return {"size": os.fstat(image).st_size, "fstype": fstype, "layers": request["layers"]}


def _lock(path: str, held: contextlib.ExitStack) -> int:
    """Return the file, made and locked until ``held`` ends, and removed then if it is still there.

    Builders wait for each other at a file of its own. Did they wait at the draft, they would find
    it to be the image, which is locked by whoever uses it.
    """
    path = os.path.abspath(path)  # packing changes the working directory
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if is_at(path, fd):
            break
        os.close(fd)
    held.callback(os.close, fd)
    held.callback(_unlink, path)
    return fd


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _make(request: dict[str, Any], image: int) -> str:
    """Write the image; return its file system."""
    syscalls.enter_private_mounts()
    tree = _assemble(request)
    os.chdir(request["directory"])
    syscalls.keep_capabilities(_CAPABILITIES)
    os.set_inheritable(image, True)
    survey = _survey(tree)
    request["needs"] = survey.bytes + survey.bytes // 4 + survey.files * 512 + _METADATA
    try:
        fstype, said = "erofs", _make_erofs(request, image, tree, survey)
        if not superblock.is_whole(image, fstype):
            fstype, second = "ext4", _make_ext4(request, image, tree, survey)
            said = f"{said}; {second}"
    finally:
        os.set_inheritable(image, False)
    if not superblock.is_whole(image, fstype):
        raise _Failed(f"cannot make an image of {len(request['layers'])} layers: {said}")
    return fstype


def _make_erofs(request: dict[str, Any], image: int, tree: str, survey: _Survey) -> str:
    os.ftruncate(image, 0)  # what a builder left that died
    options = ["--quiet", "-U", request["uuid"]]
    if survey.sparse:
        if survey.length > _CHUNKED_UP_TO:
            return f"{survey.length} bytes, with holes, are too many for erofs"
        # The plain layout writes every hole out; chunks of zeros are left out, but hashed.
        options.append(f"--chunksize={_CHUNK}")
    said = _run(["mkfs.erofs", *options, f"/proc/self/fd/{image}", tree])
    if not said:
        os.pwrite(image, superblock.normalised(os.pread(image, 4096, 0)), 0)
        return said
    os.ftruncate(image, 0)
    return said


def _make_ext4(request: dict[str, Any], image: int, tree: str, survey: _Survey) -> str:
    # A sparse file: what is too much costs nothing.
    size = survey.bytes * 5 // 4 + survey.files * 8192 + (64 << 20) >> 20 << 20
    os.ftruncate(image, 0)
    os.ftruncate(image, size)
    features = "^has_journal,^resize_inode,^orphan_file,^64bit,sparse_super2"
    extended = f"nodiscard,lazy_itable_init=1,assume_storage_prezeroed=1,num_backup_sb=0,\
hash_seed={request['uuid']}"
    said = _run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0",
                 "-N", str(survey.files + 100), "-U", request["uuid"], "-O", features,
                 "-E", extended, "-d", tree, f"/proc/self/fd/{image}"])  # fmt: skip
    # No layer has this directory, and the container would see it.
    said = said or _run(["debugfs", "-w", "-R", "rmdir lost+found", f"/proc/self/fd/{image}"])
    if said:
        os.ftruncate(image, 0)
    return said


def _assemble(request: dict[str, Any]) -> str:
    """Return the absolute path of the tree to pack, which exists in our mount namespace only."""
    place = os.path.abspath(".mount")
    layers: Sequence[str] = request["layers"]
    for layer in layers:
        if not os.path.isdir(layer):
            raise _Failed(f"the layer {layer!r} is not a directory")
    # Opened before the tmpfs covers anything of them.
    roots = [os.open(layer, os.O_PATH | os.O_DIRECTORY) for layer in layers]
    syscalls.mount(b"none", os.fsencode(place), b"tmpfs", syscalls.MS_NODEV, b"mode=700")
    os.chdir(place)
    os.mkdir("merged")
    if request["raw"]:  # a layer of its own, whiteouts and all
        source = f"/proc/self/fd/{roots[0]}".encode()
        syscalls.mount(source, b"merged", b"", syscalls.MS_BIND)
        return f"{place}/merged"
    os.mkdir("empty")  # a read-only overlay needs two layers
    for number, root in enumerate(roots):
        os.symlink(f"/proc/self/fd/{root}", str(number))
    names = [str(number) for number in range(len(roots))]
    data = ",".join(["lowerdir=" + ":".join([*names, "empty"]), *request["options"]])
    try:
        syscalls.mount(b"none", b"merged", b"overlay", syscalls.MS_RDONLY, data.encode())
    except OSError as error:
        raise _Failed(f"cannot mount {len(roots)} layers: {error.strerror}") from error
    return f"{place}/merged"


class _Survey(NamedTuple):
    """How much there is in a tree."""

    files: int
    bytes: int
    """What the files take on the disk."""
    length: int
    """The sum of their lengths, holes included."""
    sparse: bool


def _survey(tree: str) -> _Survey:
    """Look at every file's size; takes a few milliseconds, which mkfs then saves."""
    status, said = _spawn(["find", tree, "-xdev", "-printf", r"%y %s %b\n"])
    if status:
        raise _Failed(f"cannot read the layers: {said.strip()[-200:]}")
    count = total = length = 0
    sparse = False
    for line in said.splitlines():
        kind, size, blocks = line.split()
        count += 1
        if kind == "f":
            total += int(blocks) * 512
            length += int(size)
            sparse = sparse or int(size) - int(blocks) * 512 > _SPARSE_FROM
    return _Survey(count, total, length, sparse)


def _run(argv: list[str]) -> str:
    """Run a program; return nothing when it succeeds, else the last line that it wrote."""
    status, said = _spawn(argv)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (lines[-1] if lines else f"{argv[0]} exited with {status}") if status else ""


def _spawn(argv: list[str]) -> tuple[int, str]:
    """Run a program, which ends when we do; return its exit code and everything that it wrote."""
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.die_with_parent(parent)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os.execvpe(argv[0], argv, helper_environment())  # noqa: S606
        except FileNotFoundError:
            os.write(2, f"the host has no {argv[0]}".encode())
        finally:
            os._exit(127)
    os.close(writer)
    with open(reader, "rb") as output:
        said = output.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), said


def _settle(request: dict[str, Any], built: _Built) -> None:
    """Make the image outlast a crash of the host, and note its hash for ``verify``."""
    os.nice(_NICE)
    os.fsync(built.fd)
    facts = _facts(request, built.fd, built.fstype)
    digest = hashlib.sha256()
    for at in range(0, facts["size"], _READ):
        digest.update(os.pread(built.fd, _READ, at))
    note(request["name"], {**facts, "boot": "", "sha256": digest.hexdigest()})
