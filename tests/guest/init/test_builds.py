"""void-init under every tool that can find a fault in it without a VM."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.guest.hello import WELL_KNOWN_TOKEN
from tests.guest.init.harness import build, container_plan
from tests.guest.init.test_wire import HELLO, frame

_FUZZ_SECONDS = int(os.environ.get("VOID_INIT_FUZZ_SECONDS", "10"))


def test_the_binary_is_static_and_hardened(binary: Path) -> None:
    shown = subprocess.run(
        ["readelf", "--wide", "--program-headers", "--dynamic", str(binary)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "INTERP" not in shown
    assert "NEEDED" not in shown
    assert "GNU_RELRO" in shown
    stack = next(line for line in shown.splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack


def test_it_says_how_to_use_it(binary: Path) -> None:
    done = subprocess.run([str(binary)], capture_output=True, text=True, check=False)
    assert done.returncode == 100
    assert done.stderr.startswith("usage: ")


@pytest.mark.timeout(300)
def test_the_analyzer_finds_nothing(build_folder: Path) -> None:
    build("analyze", build_folder)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everything_passes_under_the_sanitizers(build_folder: Path) -> None:
    if os.environ.get("VOID_INIT_TARGET") == "sanitize":
        pytest.skip("this is that run")
    here = Path(__file__).parent
    files = {"test_processes.py", "test_stdio.py", "test_wire.py", "test_files.py"}
    files |= {path.name for path in here.glob("test_launch*.py")} - {"test_launch_like_runc.py"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         "--deselect", str(here / "test_stdio.py") + "::test_output_is_fast",
         *(str(here / file) for file in sorted(files))],
        env=os.environ | {"VOID_INIT_TARGET": "sanitize", "VOID_INIT_BUILD": str(build_folder)},
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]


def _corpus(folder: Path) -> list[Path]:
    """Inputs that reach every layer: whole, cut, and with bytes changed, always the same."""
    dice = random.Random(20)
    plan = container_plan("c", "sh", "-c", "true").SerializeToString()
    hello = frame(1, "Hello", HELLO)
    stats = frame(3, "Stats", pb.ContainerRef(container_id="c"))
    seeds = [
        b"\x00" + hello + stats + WELL_KNOWN_TOKEN + bytes(16) + hello,
        b"\x00" + hello + b"\xff\xff\xff\xff" + stats,
        b"\x01" + plan,
        b"\x02" + plan,
        b"\x02" + container_plan("c", "sh").process.SerializeToString(),
    ]
    inputs = list(seeds)
    for seed in seeds:
        inputs += [seed[:size] for size in range(1, len(seed), 3)]
        for _ in range(100):
            changed = bytearray(seed)
            for _ in range(dice.randint(1, 6)):
                changed[dice.randrange(1, len(changed))] = dice.randrange(256)
            inputs.append(bytes(changed))
    folder.mkdir()
    for number, data in enumerate(inputs):
        (folder / f"{number:05}").write_bytes(data)
    return sorted(folder.iterdir())


def test_hostile_input_replayed(build_folder: Path, tmp_path: Path) -> None:
    build("replay", build_folder)
    done = subprocess.run(
        [str(build_folder / "replay-link"), *map(str, _corpus(tmp_path / "corpus"))],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("clang"), reason="not installed: clang")
def test_hostile_input_sought_by_libfuzzer(build_folder: Path, tmp_path: Path) -> None:
    build("fuzz", build_folder)
    _corpus(tmp_path / "corpus")
    done = subprocess.run(
        [str(build_folder / "fuzz-link"), f"-max_total_time={_FUZZ_SECONDS}", "-max_len=8192",
         "-timeout=5", f"-artifact_prefix={tmp_path}/", str(tmp_path / "corpus")],
        capture_output=True, text=True, check=False, timeout=_FUZZ_SECONDS + 60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
