"""The TSC frequency: measured once per boot of the host."""

from __future__ import annotations

import fcntl
import json
import os
import time
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
    assert [path.name for path in tmp_path.iterdir()] == ["tsc.json"]


@pytest.mark.parametrize("old", ["", "{", '{"boot_id": "another", "khz": 5}', "[]"])
def test_what_an_earlier_boot_or_a_crash_left_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    (tmp_path / "tsc.json").write_text(old)
    monkeypatch.setattr(tsc, "measure_tsc_khz", lambda: 77)
    assert tsc.host_tsc_khz(tmp_path) == 77
    assert json.loads((tmp_path / "tsc.json").read_text())["khz"] == 77


def test_of_many_at_once_one_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process would get a value of its own."""
    (tmp_path / "tsc.json").write_text('{"boot_id": "the boot before", "khz": 5}')
    read, write = os.pipe()

    def measure() -> int:
        os.write(write, b"measured ")
        time.sleep(0.05)  # the others come in the meantime
        return 1000 + os.getpid()

    monkeypatch.setattr(tsc, "measure_tsc_khz", measure)
    children = [fork(lambda: os.write(write, b"%d " % tsc.host_tsc_khz(tmp_path)))
                for _ in range(6)]  # fmt: skip
    os.close(write)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    words = os.read(read, 4096).split()
    os.close(read)
    kept = json.loads((tmp_path / "tsc.json").read_text())["khz"]
    assert sorted(words) == sorted([b"measured", *([b"%d" % kept] * 6)])


def fork(task: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        try:
            task()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def test_a_holder_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tsc, "_LOCK_TIMEOUT", 0.05)
    monkeypatch.setattr(tsc, "measure_tsc_khz", lambda: 77)
    with (tmp_path / "tsc.json").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert tsc.host_tsc_khz(tmp_path) == 77
