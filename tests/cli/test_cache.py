"""``void-cache``: what is there, what is damaged, what may go."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from shims.cli.cache import void_cache
from shims.microvm.images import CachedImage, ImageCache

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


async def _fill(directory: Path, layers: list[Path]) -> list[CachedImage]:
    cache = ImageCache(directory)
    images = []
    for layer in layers:
        layer.mkdir()
        (layer / "file").write_text(layer.name)
        images.append(await cache.image([str(layer)]))
    await asyncio.wait_for(asyncio.gather(*(child.exited for child in cache.helpers)), 20)
    await cache.close()
    return images


def _run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(void_cache, words, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOID_SHIMS_STATE", str(tmp_path))
    assert "0 images" in _run("show")
    layers = [tmp_path / "a", tmp_path / "b"]
    used, idle = asyncio.run(_fill(tmp_path / "images", layers))
    idle.close()
    shown = {tuple(image["layers"]): image for image in json.loads(_run("show", "-o", "json"))}
    assert shown[str(layers[0]),]["in_use"]
    assert not shown[str(layers[1]),]["in_use"]
    assert "in use" in _run("show")
    assert "0 damaged" in _run("verify")
    assert "removed 1, kept 1" in _run("gc")
    used.close()
    (image,) = (tmp_path / "images").glob("*.image")
    image.write_bytes(b"?")
    assert "superblock" in _run("verify", code=1)
    assert json.loads(_run("gc", "-o", "json")) == {"removed": []}
    for command in ("show", "verify", "gc"):
        assert len(_run(command, "--help")) > 150
