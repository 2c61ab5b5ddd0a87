"""containerd/shimtest, the executable contract of a shim, wherever its toolchain is present.

The suite is fetched as the Go module that it is (or taken from the source tree that
``VOID_SHIMTEST_SOURCE`` names), built with its own Makefile, and run against our binary with a
profile. It needs no containerd. What we leave out, and why, is listed here; a skip of the suite's
own that is not is a failure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.runtimes import VOIDBOX, build_guest, install_programs, shim_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODULE = "github.com/containerd/shimtest"
_VERSIONS = {
    "v0.3.3": "",
    "v0.3.0": "h1:oTtRnAEA20cqqxU68Jpg6fajUVXtUYI38Q1Z/shv70k=",
}
"""The newest first; not every module proxy has each. The checksum of one that no database knows."""
_RELEASED = "github.com/containerd/ttrpc=github.com/containerd/ttrpc@v1.2.9"
"""For a pre-release that the suite asks for: the release that came of it."""
_BUILD_TIMEOUT = 600.0

SKIPPED = {
    "layers": "30 to 100 formatted layers handed over as images: we mount what containerd sends",
    "net": "a container started alone has loopback only; pods bring the network",
    "sandbox": "the Sandbox API comes with pods",
    "transfer": "the streaming service is no part of a shim for single containers",
    "uds": "forwarding of unix sockets into the VM is not offered",
}
"""Groups of the suite that the profile leaves out, each with its reason."""

RAN = {
    "run": ("Lifecycle", "InitExitCodes", "OutputThenExit", "Events", "FastExitInit"),
    "exec": (
        "Exec", "StdioRoundTrip", "LargeStdioRoundTrip", "Clock", "ExitCodes", "LargeFileRead",
        "BindMountRead", "FastExitOutput", "ExecOutputDrainAfterExit", "ExecDiscardIO",
        "ExecCommandNotFound",
    ),
    "oom": ("OOM",),
}  # fmt: skip
"""Groups of the suite that must have run, by tests of theirs that must have passed."""

OWN_SKIPS = {
    "FuzzTransferMissing": SKIPPED["transfer"],
}
"""Tests that the suite itself may skip on our profile, each with its reason."""

STRESS = "runs for minutes; tests/e2e/test_faults.py and test_streams.py count leaks instead"


def parse_verdicts(output: str) -> dict[str, str]:
    """Return each test's verdict (PASS, FAIL or SKIP) from the output of ``-test.v``."""
    found = re.findall(r"^\s*--- (PASS|FAIL|SKIP): (\S+)", output, re.MULTILINE)
    return {name: verdict for verdict, name in found}


def missing_passes(verdicts: Mapping[str, str]) -> list[str]:
    """Return which tests of ``RAN`` did not pass, each as GROUP/TEST: VERDICT."""
    # TestShim/PROFILE/TEST; subtests are deeper.
    found = {name.split("/")[2]: verdict for name, verdict in verdicts.items()
             if name.count("/") == 2}  # fmt: skip
    return [
        f"{group}/{test}: {found.get(test, 'did not run')}"
        for group, tests in RAN.items()
        for test in tests
        if found.get(test) != "PASS"
    ]


def unexplained_skips(verdicts: Mapping[str, str]) -> list[str]:
    """Return the tests that the suite skipped, but none of those in ``OWN_SKIPS``."""
    return [name for name, verdict in verdicts.items()
            if verdict == "SKIP" and name not in OWN_SKIPS]  # fmt: skip


def write_profile(path: Path, shim: Path, environ: Mapping[str, str]) -> Path:
    """Write the suite's configuration for our shim."""
    profile = {
        "shim_binary": str(shim),
        "uid": 0,
        "gid": 0,
        "format_mounts": False,
        "skip": sorted(SKIPPED),
        "env": dict(environ),
        "debug": True,
    }
    path.write_text(json.dumps(profile))
    return path


def _fetch(work: Path) -> Path:
    """Return a writable copy of the suite's source; skips the test if it cannot be had."""
    source = os.environ.get("VOID_SHIMTEST_SOURCE") or _download(work)
    target = work / "shimtest"
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for directory, _, _ in os.walk(target):
        os.chmod(directory, 0o755)  # the module cache is read-only
    return target


def _download(work: Path) -> str:
    """Return the directory of the newest version that can be had."""
    (work / "go.mod").write_text("module void-box.test/fetch\n\ngo 1.21\n")
    reasons = []
    for version, checksum in _VERSIONS.items():
        answer = subprocess.run(
            ["go", "mod", "download", "-json", f"{_MODULE}@{version}"],
            cwd=work,
            env={**os.environ, **({"GONOSUMDB": _MODULE} if checksum else {})},
            capture_output=True,
            text=True,
            timeout=120,
        )
        try:
            module = json.loads(answer.stdout)
        except ValueError:
            module = {"Error": answer.stderr}
        if "Error" not in module:
            assert checksum in ("", module["Sum"]), "the suite is not what it was"
            return str(module["Dir"])
        reasons.append(" ".join(module["Error"].split()))
    pytest.skip(f"{_MODULE} cannot be fetched: {'; '.join(reasons)}")


def _build(source: Path) -> str:
    """Build the suite; return why that is not possible, empty when it is built."""
    command = ["make", "build"]
    first = subprocess.run(
        command, cwd=source, capture_output=True, text=True, timeout=_BUILD_TIMEOUT
    )
    if not first.returncode:
        return ""
    subprocess.run(["go", "mod", "edit", "-replace", _RELEASED], cwd=source, check=True, timeout=60)
    again = subprocess.run(
        command,
        cwd=source,
        env={**os.environ, "GOFLAGS": "-mod=mod"},
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT,
    )
    return f"{first.stderr.strip()}\n{again.stderr.strip()}" if again.returncode else ""


@pytest.mark.go
@pytest.mark.root
@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_shimtest_passes(tmp_path: Path) -> None:
    if reason := VOIDBOX.missing():
        pytest.skip(reason)
    source = _fetch(tmp_path)
    if reason := _build(source):
        pytest.skip(f"shimtest does not build here: {reason[-800:]}")
    state = tmp_path / "state"
    build_guest(state)
    environ = shim_environment() | {
        "VOID_SHIMS_RUN": str(tmp_path / "r"),
        "VOID_SHIMS_STATE": str(state),
    }
    shim = install_programs(tmp_path / "bin") / "containerd-shim-voidbox-v2"
    profile = write_profile(tmp_path / "voidbox.json", shim, environ)
    ran = subprocess.run(
        [
            source / "_output" / "shimtest.test", "-test.v", "-test.timeout=20m",
            "-test.skip=//Stress$", f"-shimtest.config={profile}",
        ],
        cwd=source, capture_output=True, text=True, timeout=1300,
    )  # fmt: skip
    verdicts = parse_verdicts(ran.stdout)
    failed = [name for name, verdict in verdicts.items() if verdict == "FAIL"]
    assert not failed, ran.stdout[-20_000:]
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    assert not missing_passes(verdicts)
    assert not unexplained_skips(verdicts), ran.stdout[-4000:]


def test_verdicts_are_read_from_nested_tests() -> None:
    output = (
        "=== RUN   TestShim/voidbox/Lifecycle\n"
        "--- FAIL: TestShim (2.50s)\n"
        "    --- FAIL: TestShim/voidbox (2.50s)\n"
        "        --- PASS: TestShim/voidbox/Lifecycle (0.50s)\n"
        "        --- FAIL: TestShim/voidbox/ExecClock (1.00s)\n"
        "        --- SKIP: TestShim/voidbox/LoopBack (0.00s)\n"
    )
    assert parse_verdicts(output) == {
        "TestShim": "FAIL",
        "TestShim/voidbox": "FAIL",
        "TestShim/voidbox/Lifecycle": "PASS",
        "TestShim/voidbox/ExecClock": "FAIL",
        "TestShim/voidbox/LoopBack": "SKIP",
    }


def test_the_profile_leaves_out_what_has_a_reason(tmp_path: Path) -> None:
    written = json.loads(write_profile(tmp_path / "p.json", Path("/shim"), {"A": "b"}).read_text())
    assert written["skip"] == sorted(SKIPPED)
    assert all(len(reason) > 20 for reason in [*SKIPPED.values(), *OWN_SKIPS.values(), STRESS])
    assert {"exec", "oom"}.isdisjoint(written["skip"])


def test_a_group_that_did_not_run_is_missed() -> None:
    every = {f"TestShim/voidbox/{test}": "PASS" for tests in RAN.values() for test in tests}
    assert not missing_passes(every)
    assert RAN.keys().isdisjoint(SKIPPED)
    del every["TestShim/voidbox/OOM"]
    every["TestShim/voidbox/Clock"] = "SKIP"
    every["TestShim/voidbox/ExitCodes/OOM"] = "PASS"
    assert missing_passes(every) == ["exec/Clock: SKIP", "oom/OOM: did not run"]


@pytest.mark.parametrize("test", ["FastExitInit", "LargeFileRead", "ExitCodes/Exit42"])
def test_a_skip_without_a_reason_is_told(test: str) -> None:
    """Also of a test that ``RAN`` does not name, and of a part of one."""
    every = {f"TestShim/voidbox/{test}": "PASS" for tests in RAN.values() for test in tests}
    every["FuzzTransferMissing"] = "SKIP"
    assert not unexplained_skips(every)
    every[f"TestShim/voidbox/{test}"] = "SKIP"
    assert unexplained_skips(every) == [f"TestShim/voidbox/{test}"]
    assert unexplained_skips({"TestShim/voidbox": "SKIP"}) == ["TestShim/voidbox"]
