"""The TSC frequency: measured once per boot of the host."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from shims.microvm import tsc

if TYPE_CHECKING:
    from pathlib import Path


def test_two_measurements_agree() -> None:
    first, second = tsc.measure_tsc_khz(), tsc.measure_tsc_khz()
    assert first > 100_000
    assert abs(first - second) < first * 1e-4


def test_it_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = tsc.host_tsc_khz(tmp_path)
    monkeypatch.setattr(tsc, "measure_tsc_khz", lambda: 1)
    assert tsc.host_tsc_khz(tmp_path) == measured
    assert [path.name for path in tmp_path.iterdir()] == ["tsc.json"]


@pytest.mark.parametrize("old", ["", "{", '{"boot_id": "another", "khz": 5}', "[]"])
def test_what_an_earlier_boot_or_a_crash_left_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    (tmp_path / "tsc.json").write_text(old)
    monkeypatch.setattr(tsc, "measure_tsc_khz", lambda: 77)
    assert tsc.host_tsc_khz(tmp_path) == 77
    assert json.loads((tmp_path / "tsc.json").read_text())["khz"] == 77
