"""The commands of a backend, over the in-memory one: the contract on the command line."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, ClassVar, Self

import pytest

from shims.cli.main import run
from shims.core.backends import ENTRY_POINT_GROUP, find_backend, list_backends
from shims.core.errors import NotFound, NotSupported
from shims.core.memory import MemoryBackend, MemoryTarget

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class StoredBackend(MemoryBackend):
    """Keeps its runs between two commands of one test; each command lets them come to an end."""

    name = "stored"
    runs: ClassVar[dict[str, object]] = {}

    def __init__(self) -> None:
        super().__init__(MemoryTarget())
        self._target.runs = StoredBackend.runs  # type: ignore[assignment]

    async def __aenter__(self) -> Self:
        await self._target.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tasks = [run.task for run in self._target.runs.values() if run.task is not None]
        for task in tasks:
            if error is None and not task.done():
                await task
        await self._target.__aexit__(kind, error, trace)


def _points(*pairs: tuple[str, str]) -> list[EntryPoint]:
    return [EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in pairs]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    StoredBackend.runs.clear()
    monkeypatch.setattr(
        "shims.core.backends.entry_points",
        lambda **_: _points(
            ("stored", f"{__name__}:StoredBackend"), ("broken", "no.such.module:Backend")
        ),
    )
    path = tmp_path / "spec.yaml"
    path.write_text(
        "kind: workflow\nname: Hello World\nsandbox: {mode: mock}\n"
        "workflow: {steps: [{name: a, run: {program: echo, args: [hello]}}]}\n"
    )
    return str(path)


def _fails(spec: str) -> str:
    path = spec.replace("spec.yaml", "fails.yaml")
    with open(spec) as good, open(path, "w") as bad:
        bad.write(good.read().replace("echo", "no-such"))
    return path


def test_run_and_wait_shows_the_output_and_the_outcome(
    spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["stored", "run", "--wait", "--id", "one", spec]) == 0
    out, err = capsys.readouterr()
    assert out == "hello\n"
    assert err.splitlines()[-1].startswith("stored:one: Succeeded (Completed)")
    assert run(["stored", "run", "--wait", _fails(spec)]) == 1
    assert "Failed (ReportedFailure) step a: there is no program" in capsys.readouterr().err


def test_the_life_of_a_run(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stored", "run", spec]) == 0
    ref = capsys.readouterr().out.strip()
    assert ref.startswith("stored:hello-world-")
    assert run(["stored", "run", spec]) == 3
    assert "hint: remove it, or choose another run id" in capsys.readouterr().err
    name = ref.partition(":")[2]
    for form in (ref, name):
        assert run(["stored", "status", form]) == 0
        assert f"{ref}: Succeeded (Completed)" in capsys.readouterr().out
    assert run(["stored", "list", "-o", "json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["ref"], listed["state"], listed["exit_code"]) == (ref, "Succeeded", 0)
    assert run(["stored", "logs", name]) == 0
    assert capsys.readouterr().out == "hello\n"
    assert run(["stored", "events", "--after", "0", name]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert run(["stored", "wait", name]) == 0
    assert run(["stored", "cancel", name]) == 0
    assert run(["stored", "rm", name, "never-was"]) == 0
    capsys.readouterr()
    assert run(["stored", "status", name]) == 4
    assert capsys.readouterr().err == f"error: there is no run {ref}\n"


def test_a_bare_backend_shows_its_help(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert spec
    assert run(["stored"]) == 2
    shown = "".join(capsys.readouterr())
    assert shown.startswith("Usage: void-shim stored ")
    assert "hint:" not in shown


def test_render_touches_nothing(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stored", "render", "--id", "x", "--label", "a=b", spec]) == 0
    assert capsys.readouterr().out == '# x.json\n[["echo", "hello"]]\n'
    assert run(["stored", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_bad_input_is_told_like_everywhere(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stored", "run", "--label", "x", spec]) == 2
    assert "'x' is not KEY=VALUE" in capsys.readouterr().err
    assert run(["stored", "run", "--id", "Not Good", spec]) == 2
    assert "error: run id: got 'Not Good'; allowed: 1 to 63" in capsys.readouterr().err
    with open(spec, "a") as file:
        file.write("kind: again\n")
    assert run(["stored", "run", spec]) == 2
    assert "5:1: kind: got the same key a second time" in capsys.readouterr().err


def test_backends_lists_the_broken_one_too(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert spec
    assert run(["backends"]) == 0
    heading, broken, stored = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "USABLE", "CAPABILITIES", "FROM", "SUMMARY"]
    assert broken.split()[:2] == ["broken", "no"]
    assert "No module named 'no'" in broken
    assert stored.split()[:4] == ["stored", "yes", "cancel,", "suspend"]
    assert run(["--help"]) == 0
    assert "broken" in capsys.readouterr().out
    assert run(["broken", "list"]) == 6
    assert "error: backend 'broken' cannot be used" in capsys.readouterr().err


def test_registry_problems_are_told_by_name() -> None:
    points = _points(
        ("gone", "shims.core.memory:Gone"),
        ("other", "shims.core.memory:MemoryBackend"),
        ("thing", "shims.core.memory:MemoryTarget"),
    )
    problems = {backend.name: backend.problem for backend in list_backends(points)}
    assert "no attribute 'Gone'" in problems["gone"]
    assert problems["other"] == "it calls itself 'memory'"
    assert problems["thing"] == "shims.core.memory:MemoryTarget is no ShimCore"
    with pytest.raises(NotSupported, match="cannot be used"):
        find_backend("thing", points)
    with pytest.raises(NotFound, match="installed: gone, other, thing"):
        find_backend("nothing", points)
    assert find_backend("memory", _points(("memory", "shims.core.memory:MemoryBackend")))
