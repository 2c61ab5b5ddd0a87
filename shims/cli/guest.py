"""``void-guest``: build, show, verify and collect guest images."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from shims.cli.entry import main_of, version_option
from shims.cli.output import OUTPUT_OPTION, print_json
from shims.core.errors import ExitCode
from shims.core.paths import state_dir
from shims.guest.image.build import build_guest_image
from shims.guest.image.care import collect_garbage, verify_image
from shims.guest.image.find import (
    MANIFEST,
    GuestImage,
    find_guest_image,
    stored_image,
    stored_images,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["main"]

_NAME = "void-guest"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_which = click.argument("digest", required=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@version_option(_NAME)
def void_guest() -> None:
    """Guest images: the kernel and initramfs that every microVM of this host boots.

    An image is made of the host's own kernel package and of void-init, our PID 1. It is named by
    the digest of its content, shared by all VMs, and never changes. The shim builds a missing
    image at the first start of a container; building it here first takes a second off that start.

    \b
    Examples:
      void-guest build
      void-guest show
      void-guest verify && void-guest gc
    """


@void_guest.command()
@click.option("--kernel", type=_FILE, help="A bzImage or vmlinux instead of the host's best.")
@click.option("--initramfs", type=_FILE, help="A finished cpio archive (brings its own PID 1).")
@click.option("--init", type=_FILE, help="Another void-init: a static program that runs as PID 1.")
@click.option("--module", "modules", multiple=True, metavar="NAME", help="One more kernel module.")
@OUTPUT_OPTION
def build(
    kernel: Path | None, initramfs: Path | None, init: Path | None, modules: tuple[str, ...],
    output: str,
) -> None:  # fmt: skip
    """Build the guest image, unless it is there already.

    Without options the newest cloud kernel in /boot is taken, else the newest of any kind, and
    `void-shim` and the containerd shim find the result by themselves. With options the printed
    directory has to be named in /etc/void-shims/config.toml.

    \b
    Examples:
      void-guest build
      void-guest build --kernel /boot/vmlinuz-6.1.0-56-cloud-amd64 --module nf_tables
    """
    begin = time.monotonic()
    with _progress() as tell:
        image = build_guest_image(
            kernel=kernel, initramfs=initramfs, init=init, modules=modules, progress=tell
        )
    _print_image(image, output, seconds=time.monotonic() - begin)


@void_guest.command()
@_which
@click.option("--all", "everything", is_flag=True, help="Every stored image, the newest first.")
@OUTPUT_OPTION
def show(digest: str | None, everything: bool, output: str) -> None:
    """Show the image that VMs boot now, the one of DIGEST (or its beginning), or all.

    \b
    Examples:
      void-guest show
      void-guest show --all -o json | jq -r '.[].directory'
    """
    images = stored_images(_store()) if everything else [_find(digest)]
    if everything and output == "json":
        print_json([_describe(image) for image in images])
        return
    for image in images:
        _print_image(image, output)


@void_guest.command()
@_which
@OUTPUT_OPTION
def verify(digest: str | None, output: str) -> None:
    """Read an image in full and compare it with its manifest. A damaged image exits with 1.

    A damaged image is not used any more: the next container, or `void-guest build`, replaces it.

    \b
    Examples:
      void-guest verify
    """
    image = _find(digest)
    wrong = verify_image(image)
    if output == "json":
        print_json({"digest": image.digest, "intact": not wrong, "wrong": wrong})
    else:
        click.echo("\n".join(wrong) if wrong else f"{image.digest} is intact")
    if wrong:
        raise click.exceptions.Exit(ExitCode.FAILED)


@void_guest.command()
@click.option("--keep", type=click.IntRange(0), default=1, show_default=True,
              help="How many of the newest images to keep besides the current one.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@OUTPUT_OPTION
def gc(keep: int, dry_run: bool, output: str) -> None:
    """Remove images that no VM needs: neither current, nor among the newest, nor being booted.

    Running VMs do not need their image any more: it is in their memory.

    \b
    Examples:
      void-guest gc --dry-run
      void-guest gc --keep 0               keep the current image only
    """
    done = collect_garbage(state_dir(), keep=keep, dry_run=dry_run)
    if output == "json":
        report = {"removed": done.removed, "kept": done.kept, "freed_bytes": done.freed}
        print_json(report)
        return
    verb = "would remove" if dry_run else "removed"
    for digest in done.removed:
        click.echo(f"{verb} {digest}")
    click.echo(f"{verb} {len(done.removed)}, kept {len(done.kept)}, {done.freed >> 20} MiB")


def _store() -> Path:
    return state_dir() / "guest"


def _find(digest: str | None) -> GuestImage:
    if not digest:
        return find_guest_image()
    return stored_image(_store(), digest)


def _describe(image: GuestImage) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((image.directory / MANIFEST).read_bytes())
    return {"directory": str(image.directory), **manifest}


def _print_image(image: GuestImage, output: str, seconds: float | None = None) -> None:
    if output == "json":
        print_json(_describe(image))
        return
    sizes = [path.stat().st_size / (1 << 20) for path in (image.kernel, image.initramfs)]
    click.echo(f"digest     {image.digest}")
    click.echo(f"kernel     {image.release} ({sizes[0]:.1f} MiB)")
    click.echo(f"initramfs  {len(image.modules)} modules ({sizes[1]:.1f} MiB)")
    click.echo(f"directory  {image.directory}")
    if seconds is not None:
        click.echo(f"took       {seconds:.3f} s")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Tell a person at a terminal what happens; say nothing into a pipe or a log."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # costs 0.1 s: only for a person who waits longer than that

    with Console(stderr=True).status("looking at the host") as status:
        yield lambda text: status.update(text)


def main() -> NoReturn:
    """Run ``void-guest`` and exit with the code of ``shims.core.errors.ExitCode``."""
    main_of(void_guest, _NAME)


if __name__ == "__main__":
    main()
