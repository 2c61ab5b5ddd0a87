"""Build the guest image and publish it; the work behind ``void-guest build``.

The kernel is extracted, the modules are read, the initramfs is written into a directory beside the
others, everything is synced and hashed, and one rename publishes it. Whoever comes second waits
for the lock and finds the work done.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shims.core.errors import InputError, NotFound, NotSupported, TargetError
from shims.core.paths import ensure_private_dir, state_dir
from shims.guest.image.cpio import Entry, write_cpio
from shims.guest.image.decompress import compression_of
from shims.guest.image.find import (
    FORMAT,
    INITRAMFS,
    KERNEL,
    MANIFEST,
    VOID_INIT,
    GuestImage,
    Request,
    identity,
    load_image,
    lookup,
)
from shims.guest.image.host import PACKAGE, choose_kernel, installed_kernels
from shims.guest.image.kernel import extract_vmlinux, has_pvh_entry, kernel_release
from shims.guest.image.modules import TABLES, Module, ModuleTree, plan_modules
from shims.guest.image.verify import verify_directory
from shims.guest.plan.devices import usual_device_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Progress = Callable[[str], None]

__all__ = ["TRASH", "build_guest_image", "disk_errors", "locked"]

_MAKE_TIMEOUT = 120.0
_CPIO_MAGIC = (b"070701", b"070702")
_UNFINISHED = ".building-"
TRASH = ".removing-"
"""Begins the name of an image that is being removed; nobody finds it any more."""


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Translate what the host's file system refuses: no space, no permission, a broken disk."""
    try:
        yield
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise TargetError(f"guest images: {place}{error.strerror or error}") from error


@disk_errors()
def build_guest_image(
    *,
    kernel: Path | None = None,
    initramfs: Path | None = None,
    init: Path | None = None,
    modules: Sequence[str] = (),
    state: Path | None = None,
    root: Path = Path("/"),
    progress: Progress | None = None,
) -> GuestImage:
    """Return the guest image of these inputs, which is built unless it is there already.

    ``kernel`` is a bzImage or an ELF kernel, by default the best that is installed below
    ``root``; ``initramfs`` is taken as it is, by default one is made of ``init`` (void-init) and
    the kernel's modules, with those named in ``modules`` in addition. ``progress`` is told what
    happens, a few words at a time. Blocks for about a second; call it from a thread.

    Raises ``NotFound`` for a missing kernel or void-init with the package to install,
    ``NotSupported`` for a kernel that lacks what guests need, ``InputError`` for a file that is
    not what it should be, ``TargetError`` where the image cannot be stored.
    """
    tell = progress or _silent
    store = (state or state_dir()) / "guest"
    request = _request(kernel, initramfs, init, modules, root)
    if request.initramfs is None and init is None:
        _compile_init(tell, store)
    if image := lookup(store, request):
        return image
    with locked(store):
        if image := lookup(store, request):
            return image
        for leftover in store.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)  # of a builder that died: its lock is ours now
        default = any(
            request == Request(installed.path, modules=installed.modules, init=VOID_INIT)
            for installed in installed_kernels(root)
        )
        return _build(store, request, tell, default=default)


def _silent(_: str) -> None:
    """Tell nobody."""


def _request(
    kernel: Path | None,
    initramfs: Path | None,
    init: Path | None,
    modules: Sequence[str],
    root: Path,
) -> Request:
    own_init = VOID_INIT if init is None else init.absolute()
    if kernel is None:
        chosen = choose_kernel(root)
        path, tree = chosen.path, chosen.modules
    else:
        path = kernel.absolute()
        release = kernel_release(extract_vmlinux(_read(path, "kernel"), what="kernel"))
        tree = root / "lib/modules" / release
        if initramfs is None and not (release and (tree / "modules.dep").exists()):
            raise NotFound(
                f"{kernel}: no modules of its release ({release or 'unknown'}) in {tree.parent}",
                hint=f"give --initramfs, or apt-get install {PACKAGE}",
            )
    if initramfs is not None:
        return Request(path, initramfs.absolute())
    return Request(path, None, tree, own_init, tuple(modules))


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{what}: no file {path}") from error
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(what, str(path), f"a file that we may read ({error.strerror})") from error


def _compile_init(tell: Progress, store: Path) -> None:
    """Run make where void-init is missing or older than its source: a checkout, not a package."""
    source = VOID_INIT.parent
    parts = [*source.glob("*.[ch]"), source / "Makefile"]
    if not (source / "Makefile").exists() or not os.access(source, os.W_OK):
        return
    newest = max(path.stat().st_mtime_ns for path in parts)
    if VOID_INIT.exists() and VOID_INIT.stat().st_mtime_ns >= newest:
        return
    with locked(store):
        tell("compiling void-init")
        try:
            done = subprocess.run(
                ["make", "--silent", "-C", source, VOID_INIT.name],
                capture_output=True, text=True, timeout=_MAKE_TIMEOUT, check=False,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise NotFound("void-init has to be compiled and there is no make",
                           hint="apt-get install make musl-tools") from error  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["make said nothing"]
        raise NotSupported(f"void-init does not compile: {lines[0]}",
                           hint="apt-get install make musl-tools")  # fmt: skip


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the lock of ``store``, which is made. The kernel drops it with its holder's life."""
    ensure_private_dir(store)
    fd = os.open(store / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _build(store: Path, request: Request, tell: Progress, *, default: bool) -> GuestImage:
    work = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=store))
    try:
        inputs = {str(request.kernel): identity(str(request.kernel))}
        tell(f"extracting the kernel of {request.kernel}")
        source = _read(request.kernel, "kernel")
        elf = extract_vmlinux(source, what=str(request.kernel))
        release = kernel_release(source) or kernel_release(elf)
        if not release:
            raise InputError("kernel", str(request.kernel), "a Linux kernel (it names no release)")
        pvh = has_pvh_entry(elf, what=str(request.kernel))
        # A kernel without the PVH entry boots by its own decompressor, only slower.
        kernel = _write(work / KERNEL, [elf if pvh or elf is source else source])
        hashes = {str(request.kernel): hashlib.sha256(source).hexdigest()}
        tell("writing the initramfs")
        names, pieces = _initramfs(request, inputs, hashes)
        initramfs = _write(work / INITRAMFS, pieces)
        digest = _digest(kernel["sha256"], initramfs["sha256"])
        manifest = {
            "format": FORMAT, "digest": digest, "release": release, "pvh": pvh,
            "kernel": kernel, "initramfs": initramfs, "modules": names,
            "inputs": [{"path": path, "sha256": hashes[path]} for path in inputs if path in hashes],
        }  # fmt: skip
        _write(work / MANIFEST, [json.dumps(manifest, indent=1).encode() + b"\n"])
        tell("publishing")
        _publish(work, store / digest)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # already renamed when all went well
    image = load_image(store / digest)
    entry = {"digest": digest, "inputs": inputs, "default": default,
             "outputs": {path.name: identity(str(path))
                         for path in (image.kernel, image.initramfs)}}  # fmt: skip
    _replace(store / "index" / f"{request.key}.json", json.dumps(entry).encode())
    return image


def _initramfs(
    request: Request, inputs: dict[str, list[int]], hashes: dict[str, str]
) -> tuple[list[str], Iterable[bytes]]:
    """Return the modules' names and the archive; note every file that goes into it."""
    if request.initramfs is not None:
        content = _read(request.initramfs, "initramfs")
        if not content.startswith(_CPIO_MAGIC) and not compression_of(content):
            raise InputError("initramfs", f"a file that begins with {content[:6].hex()}",
                             "a cpio archive (newc), compressed or not")  # fmt: skip
        inputs[str(request.initramfs)] = identity(str(request.initramfs))
        hashes[str(request.initramfs)] = hashlib.sha256(content).hexdigest()
        return [], [content]
    assert request.modules is not None
    for table in TABLES:
        path = str(request.modules / table)
        if os.path.exists(path):
            inputs[path] = identity(path)
    if not request.init.exists():
        raise NotFound(f"there is no void-init at {request.init}",
                       hint="reinstall void-shims, or run make guest in a checkout")  # fmt: skip
    modules = plan_modules(ModuleTree.read(request.modules), request.extra)
    files = [str(request.init), *(str(module.path) for module in modules)]
    inputs.update((path, identity(path)) for path in files)  # before they are read
    entries = list(_entries(request.init, modules))
    hashes.update(
        (path, hashlib.sha256(entry.content).hexdigest())
        for path, entry in zip(files, entries, strict=False)
    )
    return [module.name for module in modules], write_cpio(entries)


def _module_path(module: Module) -> str:
    return f"/lib/modules/{module.name}.ko"


def _entries(init: Path, modules: Sequence[Module]) -> Iterator[Entry]:
    """Yield the files of the initramfs: first void-init, then the modules in load order."""
    content = _read(init, "void-init")
    if not content.startswith(b"\x7fELF"):
        raise InputError("void-init", str(init), "a static ELF program")
    yield Entry.file("/init", content, executable=True)
    for module in modules:
        yield Entry.file(_module_path(module), module.read())
    order = "".join(f"{_module_path(module)}\n" for module in modules)
    yield Entry.file("/etc/void-modules", order.encode())
    yield Entry.file("/etc/void-device-filter", usual_device_filter())
    for path in ("/dev", "/proc", "/sys", "/run", "/tmp"):  # noqa: S108
        yield Entry.directory(path)
    # The kernel gives PID 1 this as its stdin, stdout and stderr, before devtmpfs is mounted.
    yield Entry("/dev/console", stat.S_IFCHR | 0o600, device=(5, 1))


def _digest(kernel: str, initramfs: str) -> str:
    return hashlib.sha256(json.dumps([FORMAT, kernel, initramfs]).encode()).hexdigest()


def _write(path: Path, pieces: Iterable[bytes]) -> dict[str, Any]:
    """Write and sync a file; return its entry for the manifest."""
    digest = hashlib.sha256()
    size = 0
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"file": path.name, "size": size, "sha256": digest.hexdigest()}


def _publish(work: Path, target: Path) -> None:
    """Put ``work`` in the place of ``target``, unless an intact image is there already."""
    _sync_directory(work)
    damaged = target.with_name(f"{TRASH}{target.name}")
    if target.exists():
        if not verify_directory(target):
            return  # other inputs, the same result
        shutil.rmtree(damaged, ignore_errors=True)  # of a builder that died in between
        target.rename(damaged)
    work.rename(target)
    _sync_directory(target.parent)
    shutil.rmtree(damaged, ignore_errors=True)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    _write(draft, [content])
    draft.replace(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
