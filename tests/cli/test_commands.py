"""``void-shim``: what it prints, and what it exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from shims.cli.main import run
from shims.core import errors

GOOD = "kind: workflow\nname: hi\nworkflow: {steps: [{name: a, run: {program: p}}]}\n"
BAD = "kind: agent\nname: hi\nagent: {prompt: p, timeout_secs: 5m}\n"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "odd.yaml").write_text(GOOD + "colour: red\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("files")
def test_a_sound_spec(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "good.yaml"]) == 0
    assert capsys.readouterr() == ("valid: good.yaml (kind=workflow, api_version=v1)\n", "")


@pytest.mark.usefixtures("files")
def test_an_unsound_spec_is_one_line_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "bad.yaml", "good.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "valid: good.yaml (kind=workflow, api_version=v1)\n"
    assert err == (
        "error: bad.yaml:3:34: agent.timeout_secs: got '5m'; allowed: a whole number, 0 or more\n"
    )


@pytest.mark.usefixtures("files")
def test_unknown_keys_warn_and_strict_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "odd.yaml"]) == 0
    assert capsys.readouterr().err.startswith("warning: odd.yaml:4:1: colour: got an unknown key")
    assert run(["validate", "--strict", "odd.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: odd.yaml:4:1: colour")


@pytest.mark.usefixtures("files")
def test_json_tells_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "-o", "json", "good.yaml", "bad.yaml"]) == 2
    good, bad = json.loads(capsys.readouterr().out)
    assert (good["valid"], good["kind"], good["name"], good["findings"]) == (
        True,
        "workflow",
        "hi",
        [],
    )
    assert bad["valid"] is False
    (finding,) = bad["findings"]
    assert (finding["severity"], finding["field"]) == ("error", "agent.timeout_secs")
    assert (finding["line"], finding["column"]) == (3, 34)


@pytest.mark.usefixtures("files")
def test_a_missing_file_is_not_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "none.yaml"]) == 4
    assert capsys.readouterr().err == "error: none.yaml: no such file\n"


@pytest.mark.usefixtures("files")
def test_json_tells_why_a_file_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "-o", "json", "none.yaml"]) == 4
    out, err = capsys.readouterr()
    (report,) = json.loads(out)
    assert (report["valid"], err) == (False, "")
    (finding,) = report["findings"]
    assert (finding["severity"], finding["message"]) == ("error", "none.yaml: no such file")


def test_of_many_findings_the_first_errors_are_shown(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = GOOD + "".join(f"key_{i}: 1\n" for i in range(150)) + "kind_: 1\nsandbox: {vcpus: 0}\n"
    (files / "many.yaml").write_text(text)
    assert run(["validate", "many.yaml"]) == 2
    *shown, last = capsys.readouterr().err.splitlines()
    assert len(shown) == 100
    assert shown[0].startswith("error: many.yaml:155:18: sandbox.vcpus")
    assert last == "many.yaml: 52 more findings are not shown"
    assert run(["validate", "-o", "json", "many.yaml"]) == 2
    (report,) = json.loads(capsys.readouterr().out)
    assert (len(report["findings"]), report["findings_not_shown"]) == (100, 52)


def test_warnings_are_told_with_the_errors_that_they_explain(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "bad.yaml").write_text("naem: y\n" + BAD)
    assert run(["validate", "bad.yaml"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: bad.yaml:1:1: naem: got an unknown key; did you mean 'name'?")
    assert second.startswith("error: bad.yaml:4:34: agent.timeout_secs")


def test_no_backend_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shims.core.backends.entry_points", lambda **_: [])
    assert run(["backends"]) == 0
    assert "no backend is installed" in capsys.readouterr().out
    assert run(["backends", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validat"], "error: No such command 'validat'. Did you mean 'validate'?"),
        (["validate"], "error: Missing argument 'FILE...'."),
        (["validate", "-o", "xml", "f"], "error: Invalid value for '-o'"),
        (["--nonsense"], "error: No such option"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_a_hint(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(message)
    assert second.startswith("hint: try 'void-shim")


def test_help_teaches_by_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["validate"], ["backends"], ["doctor"], ["completion"]):
        assert run([*arguments, "--help"]) == 0
        out = capsys.readouterr().out
        assert "Examples:\n" in out
        assert "void-shim" in out


def test_help_is_quick_because_it_imports_little() -> None:
    program = (
        "import sys\nfrom shims.cli.main import run\nrun(['--help'])\n"
        "print([n for n in ('pydantic', 'yaml', 'google', 'rich') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_VOID_SHIM_COMPLETE" in capsys.readouterr().out


def test_completion_knows_the_commands() -> None:
    environ = {
        **os.environ,
        "_VOID_SHIM_COMPLETE": "bash_complete",
        "COMP_WORDS": "void-shim va",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from shims.cli.main import main; main()"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["plain,validate"]


@dataclass
class _Check:
    name: str
    verdict: str
    detail: str
    fix: str = ""


def _pretend_doctor(monkeypatch: pytest.MonkeyPatch, *checks: _Check) -> None:
    async def collect() -> list[_Check]:
        return list(checks)

    module = ModuleType("shims.microvm.doctor")
    module.__dict__["collect"] = collect
    monkeypatch.setitem(sys.modules, "shims.microvm.doctor", module)


def test_doctor_explains_what_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kvm = _Check("kvm", "warn", "no /dev/kvm: TCG is used", "enable virtualisation")
    qemu = _Check("qemu", "ok", "7.2")
    _pretend_doctor(monkeypatch, qemu, kvm)
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["VERDICT", "CHECK", "DETAIL"]
    assert "warn: kvm: no /dev/kvm: TCG is used\n  enable virtualisation\n" in out
    _pretend_doctor(monkeypatch, qemu, _Check("kernel", "fail", "none", "apt install it"))
    assert run(["doctor", "-o", "json"]) == 1
    assert [check["verdict"] for check in json.loads(capsys.readouterr().out)] == ["ok", "fail"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("a", 1, "2"), 2),
        (errors.AlreadyExists("m"), 3),
        (errors.NotFound("m"), 4),
        (errors.Unreachable("m"), 5),
        (errors.NotSupported("m"), 6),
        (errors.DeadlineExceeded("m"), 124),
        (errors.Conflict("m"), 2),
        (errors.InternalError("m"), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("shims.core.backends.list_backends", fail)
    saved = os.dup(1)
    try:
        assert run(["backends"]) == code
    finally:
        os.dup2(saved, 1)  # a broken pipe leaves standard output on /dev/null
        os.close(saved)
    if isinstance(error, errors.ShimError):
        assert capfd.readouterr().err == f"error: {error.message}\n"


def test_control_c_ends_with_130(tmp_path: Path) -> None:
    fifo = tmp_path / "spec.yaml"
    os.mkfifo(fifo)
    program = "import os; os.write(1, b'x'); from shims.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "validate", str(fifo)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        # Opening the other end returns when the command has opened its own: now it reads.
        with fifo.open("wb"):
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err
