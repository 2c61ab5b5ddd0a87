"""The TSC frequency: measured once per boot of the host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from shims.microvm import tsc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_two_measurements_agree() -> None:
    first, second = tsc.measure_tsc_khz(), tsc.measure_tsc_khz()
    assert first > 100_000
    assert abs(first - second) < first * 1e-4


def test_it_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = tsc.host_tsc_khz(tmp_path)
    monkeypatch.setattr(tsc, "measure_tsc_khz", lambda: 1)
    assert tsc.host_tsc_khz(tmp_path) == measured
    assert len(list(tmp_path.iterdir())) == 1


def test_what_earlier_boots_and_versions_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tsc.json", "tsc.123"):
        (tmp_path / name).write_text('{"boot_id": ')
    monkeypatch.setattr(tsc, "measure_tsc_khz", lambda: 77)
    for boot in ("first", "second"):
        monkeypatch.setattr(tsc, "boot_id", lambda boot=boot: boot)
        assert tsc.host_tsc_khz(tmp_path) == 77
        assert [path.name for path in tmp_path.iterdir()] == [f"tsc-{boot}"]


@pytest.mark.parametrize("junk", ["", "77"])
def test_what_is_not_ours_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, junk: str
) -> None:
    (tmp_path / f"tsc-{tsc.boot_id()}").write_text(junk)
    monkeypatch.setattr(tsc, "measure_tsc_khz", lambda: 5)
    assert tsc.host_tsc_khz(tmp_path) == 5


def test_many_that_measure_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsc, "measure_tsc_khz", lambda: 1000 + os.getpid())
    for number in range(20):
        monkeypatch.setattr(tsc, "boot_id", lambda number=number: f"boot-{number}")
        (tmp_path / "tsc.json").write_text('{"boot_id": "the boot before", "khz": 5}')
        values = measured_at_once(tmp_path, 8)
        assert len(values) == 8
        assert len(set(values)) == 1


def measured_at_once(directory: Path, count: int) -> list[bytes]:
    (ready, go), (read, write) = os.pipe(), os.pipe()

    def measure() -> None:
        os.close(go)
        os.read(ready, 1)  # ends for all at once
        os.write(write, b"%d " % tsc.host_tsc_khz(directory))

    children = [fork(measure) for _ in range(count)]
    os.close(write)
    os.close(go)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    values = os.read(read, 4096).split()
    os.close(read)
    os.close(ready)
    return values


def fork(task: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        try:
            task()
            os._exit(0)
        finally:
            os._exit(1)
    return child
