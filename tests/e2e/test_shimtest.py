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
_VERSION = "v0.3.3"
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
    "run": ("Lifecycle", "InitExitCodes", "OutputThenExit", "Events"),
    "exec": ("Exec", "StdioRoundTrip", "LargeStdioRoundTrip", "Clock", "ExitCodes"),
    "oom": ("OOM",),
}
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
    source = os.environ.get("VOID_SHIMTEST_SOURCE")
    if source is None:
        (work / "go.mod").write_text("module void-box.test/fetch\n\ngo 1.21\n")
        answer = subprocess.run(
            ["go", "mod", "download", "-json", f"{_MODULE}@{_VERSION}"],
            cwd=work,
            capture_output=True,
            text=True,
            timeout=120,
        )
        try:
            module = json.loads(answer.stdout)
        except ValueError:
            pytest.skip(f"{_MODULE} cannot be fetched: {answer.stderr.strip()}")
        if "Error" in module:
            pytest.skip(f"{_MODULE} cannot be fetched: {' '.join(module['Error'].split())}")
        source = module["Dir"]
    target = work / "shimtest"
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for directory, _, _ in os.walk(target):
        os.chmod(directory, 0o755)  # the module cache is read-only
    return target


@pytest.mark.go
@pytest.mark.root
@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_shimtest_passes(tmp_path: Path) -> None:
    if reason := VOIDBOX.missing():
        pytest.skip(reason)
    source = _fetch(tmp_path)
    built = subprocess.run(
        ["make", "build"], cwd=source, capture_output=True, text=True, timeout=_BUILD_TIMEOUT
    )
    if built.returncode:
        pytest.skip(f"shimtest does not build here: {built.stderr.strip()[-400:]}")
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
            "-test.skip=/Stress$", f"-shimtest.config={profile}",
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
