"""``void-cache``: look at the images of container layers, check them, and make room."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING, Any, NoReturn

import click

from shims.cli.entry import main_of, version_option
from shims.cli.output import OUTPUT_OPTION, print_json
from shims.core.errors import ExitCode
from shims.core.paths import state_dir
from shims.microvm.image_store import collect, noted_facts, verify

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["main"]

_NAME = "void-cache"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@version_option(_NAME)
def void_cache() -> None:
    """Images of container layers: what microVMs have as their read-only root file system.

    The containerd shim makes one image per chain of layers, at the first start of a container with
    that chain, and keeps the cache below 20 GiB by itself. Nothing here has to be run regularly.

    \b
    Examples:
      void-cache show
      void-cache verify -o json
      void-cache gc --limit 4096           keep at most 4 GiB
    """


@void_cache.command()
@OUTPUT_OPTION
def show(output: str) -> None:
    """List the images, the longest unused first.

    \b
    Examples:
      void-cache show
      void-cache show -o json | jq '.[] | select(.in_use | not) | .key'
    """
    images = _images()
    if output == "json":
        print_json(images)
        return
    for image in images:
        used = "in use" if image["in_use"] else f"{image['idle_seconds'] // 60} min ago"
        size = image["bytes"] >> 20
        layers = len(image["layers"])
        click.echo(f"{image['key']}  {size:>6} MiB  {layers:>3} layers  {used}")
    total = sum(image["bytes"] for image in images) >> 20
    click.echo(f"{len(images)} images, {total} MiB in {_directory()}")


@void_cache.command("verify")
@OUTPUT_OPTION
def verify_command(output: str) -> None:
    """Read every image and compare it with its hash. Damaged ones are removed; exits with 1 then.

    A removed image is made again when a container needs it; VMs that have it open keep it.

    \b
    Examples:
      void-cache verify
    """
    wrong = verify(_directory())
    if output == "json":
        print_json({"removed": wrong})
    else:
        for key, reason in wrong.items():
            click.echo(f"removed {key}: {reason}")
        click.echo(f"{len(wrong)} damaged")
    if wrong:
        raise click.exceptions.Exit(ExitCode.FAILED)


@void_cache.command()
@click.option("--limit", type=click.IntRange(0), default=0, show_default=True, metavar="MIB",
              help="How much may stay.")  # fmt: skip
@OUTPUT_OPTION
def gc(limit: int, output: str) -> None:
    """Remove images until at most --limit MiB are left, the longest unused first.

    Images that a VM uses stay. An image that is needed again is made again, which takes about as
    long as reading its layers.

    \b
    Examples:
      void-cache gc                        remove all that no VM uses
      void-cache gc --limit 4096           keep at most 4 GiB
    """
    removed = collect(_directory(), limit << 20)
    if output == "json":
        print_json({"removed": removed})
        return
    for key in removed:
        click.echo(f"removed {key}")
    click.echo(f"removed {len(removed)}, kept {len(_images())}")


def _directory() -> Path:
    return state_dir() / "images"


def _images() -> list[dict[str, Any]]:
    """Describe every image, the longest unused first; one that goes meanwhile is left out."""
    found = []
    for path in _directory().glob("*.image"):
        try:
            found.append(_describe(path))
        except FileNotFoundError:
            continue  # the shim keeps the cache small while we look
    return sorted(found, key=lambda image: (-int(image["idle_seconds"]), str(image["key"])))


def _describe(path: Path) -> dict[str, Any]:
    found = path.stat()
    noted = noted_facts(path.parent, path.stem) or {}
    return {
        "key": path.stem,
        "bytes": found.st_blocks * 512,
        "fstype": noted.get("fstype", ""),
        "layers": noted.get("layers", []),
        "idle_seconds": max(0, int(time.time() - found.st_mtime)),
        "in_use": _is_in_use(path),
    }


def _is_in_use(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def main() -> NoReturn:
    """Run ``void-cache`` and exit with the code of ``shims.core.errors.ExitCode``."""
    main_of(void_cache, _NAME)
