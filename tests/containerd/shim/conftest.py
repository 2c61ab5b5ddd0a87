"""Fixtures for the shim's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.containerd.shim.harness import FakeShim, start_fake_shim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeShim]:
    """A shim over the fake guest, with bounds short enough to run into."""
    async with start_fake_shim(tmp_path) as shim:
        yield shim
