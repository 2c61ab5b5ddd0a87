"""Loading a spec: which documents are refused, and what is said about them, and where."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from shims.core.document import MAX_BYTES
from shims.core.errors import NotFound, Unreachable
from shims.core.findings import Finding, Severity, SpecError
from shims.core.loading import load_spec, parse_spec

if TYPE_CHECKING:
    from pathlib import Path

    from shims.core.document import Syntax


def _errors(source: str | bytes, syntax: Syntax = "yaml") -> list[str]:
    data = source.encode() if isinstance(source, str) else source
    with pytest.raises(SpecError) as caught:
        parse_spec(data, syntax)
    return [_tell(finding) for finding in caught.value.findings]


def _warnings(source: str) -> list[str]:
    return [_tell(finding) for finding in parse_spec(source.encode()).findings]


def _tell(finding: Finding) -> str:
    place = f"{finding.mark.line}:{finding.mark.column} " if finding.mark else ""
    return place + finding.text


AGENT = "kind: agent\nname: x\n"
WORKFLOW = "kind: workflow\nname: x\nworkflow:\n  steps:\n"
PIPELINE = "kind: pipeline\nname: x\npipeline:\n  boxes:\n"
BOX = "    - {name: a, prompt: p, outputs: [{name: o}]}\n    - {name: b, prompt: p}\n"
STEP = "    - {name: a, run: {program: p}}\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("name: x", ["1:1 kind: got nothing; allowed: a value, this key is required"]),
        (
            "kind: job\nname: x",
            ["1:7 kind: got 'job'; allowed: agent, pipeline, workflow, sandbox"],
        ),
        (
            f"api_version: v2\n{AGENT}agent: {{prompt: p}}",
            ["1:14 api_version: got 'v2'; allowed: 'v1'"],
        ),
        (AGENT, ["1:1 agent: got nothing; allowed: a mapping, because kind is agent"]),
        (
            AGENT + "agent: {prompt: '  '}",
            ["3:17 agent.prompt: got '  '; allowed: text that is not blank"],
        ),
        (
            AGENT + "agent: {promt: p}",
            [
                "3:8 agent.prompt: got nothing; allowed: a value, this key is required; "
                "is 'promt' a misspelling of it?"
            ],
        ),
        (
            AGENT + "agent: {prompt: p, mode: service, timeout_secs: 5}",
            [
                "3:8 agent.output_file: got nothing; allowed: a path, because mode is service",
                "3:49 agent.timeout_secs: got 5; "
                "allowed: no timeout_secs together with mode: service",
            ],
        ),
        (
            AGENT + "agent: {prompt: '', mode: interactive, timeout_secs: 5}",
            [
                "3:54 agent.timeout_secs: got 5; "
                "allowed: no timeout_secs together with mode: interactive"
            ],
        ),
        (
            AGENT + "llm: {provider: claude, credential_proxy: true}\n"
            "agent: {prompt: p, mode: service, output_file: o}",
            ["3:43 llm.credential_proxy: got true; allowed: false together with mode: service"],
        ),
        (
            AGENT + "llm: {provider: codex, credential_proxy: true}\nagent: {prompt: p}",
            ["3:42 llm.credential_proxy: got true; allowed: false for provider codex"],
        ),
        (
            AGENT + "agent: {prompt: p, skills: [jq, 'file:', 'x:y', {image: i}]}",
            ["3:49 agent.skills[3].mount: got nothing; allowed: a value, this key is required"],
        ),
        (
            AGENT + "agent: {prompt: p, skills: [agent, 'file:', 'x:y']}",
            [
                "3:29 agent.skills[0]: got 'agent'; allowed: agent:VALUE",
                "3:45 agent.skills[2]: got 'x:y'; "
                "allowed: TYPE:VALUE with one of agent, file, remote, cli, mcp as TYPE",
            ],
        ),
        (
            "kind: sandbox\nname: x\nagent: {prompt: p}",
            [
                "3:8 agent: got a block 'agent'; "
                "allowed: none of agent, pipeline, workflow when kind is sandbox"
            ],
        ),
        (
            "kind: sandbox\nname: x\nsandbox: {memory_mb: 8, vcpus: 0}",
            [
                "3:22 sandbox.memory_mb: got 8; allowed: 16 to 16384 MiB",
                "3:32 sandbox.vcpus: got 0; allowed: 1 to 256 vCPUs",
            ],
        ),
        (
            "kind: sandbox\nname: x\nsandbox: {env: {A: [1], B: {}}}",
            [
                "3:20 sandbox.env.A: got a value that is not shown; allowed: text",
                "3:28 sandbox.env.B: got a value that is not shown; allowed: text",
            ],
        ),
        (
            "kind: workflow\nname: x\nworkflow: {steps: []}",
            ["3:19 workflow.steps: got a list of 0; allowed: at least one step"],
        ),
        (
            WORKFLOW + STEP + "    - {name: b, depends_on: [a, c], run: {program: p}}",
            ["6:33 workflow.steps[1].depends_on[1]: got 'c'; allowed: a, b"],
        ),
        (
            WORKFLOW + "    - {name: a, depends_on: [b], run: {program: p}}\n"
            "    - {name: b, depends_on: [c], run: {program: p}}\n"
            "    - {name: c, depends_on: [b], run: {program: p}}\n",
            [
                "6:29 workflow.steps[1].depends_on: got circular dependency b → c → b; "
                "allowed: steps that do not wait for themselves"
            ],
        ),
        (
            WORKFLOW + "    - {name: a, run: {program: p}, mode: service, timeout_secs: 3}",
            [
                "5:65 workflow.steps[0].timeout_secs: got 3; "
                "allowed: no timeout_secs together with mode: service"
            ],
        ),
        (
            WORKFLOW + "    - {name: a, run: {program: p}, timeout_secs: 5m}",
            ["5:50 workflow.steps[0].timeout_secs: got '5m'; allowed: a whole number, 0 or more"],
        ),
        (
            "kind: pipeline\nname: x\npipeline: {boxes: []}",
            ["3:19 pipeline.boxes: got a list of 0; allowed: at least one box"],
        ),
        (
            PIPELINE + BOX + "  stages: [{type: box, name: a}, {type: box, name: a}]",
            ["7:52 pipeline.stages[1].name: got 'a'; allowed: b; every box runs once"],
        ),
        (
            PIPELINE + BOX + "  stages: [{type: fan_out, boxes: [a, c]}]",
            [
                "7:19 pipeline.stages[0].type: got 'fan_out'; allowed: box, for the first stage",
                "7:39 pipeline.stages[0].boxes[1]: got 'c'; allowed: b; every box runs once",
            ],
        ),
        (
            PIPELINE + BOX + "  stages: [{type: boxes}]",
            ["7:19 pipeline.stages[0].type: got 'boxes'; allowed: box, fan_out"],
        ),
        (
            PIPELINE + "    - {name: a, prompt: p, inputs: [{from: o}]}",
            [
                "5:44 pipeline.boxes[0].inputs[0].from: got 'o'; "
                "allowed: there is no output in this pipeline"
            ],
        ),
    ],
)
def test_errors_name_field_place_and_what_would_do(source: str, expected: list[str]) -> None:
    assert _errors(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "kind: sandbox\nname: x\nsandbox: {memory: 5, netwrok: true, color: red}",
            [
                "3:11 sandbox.memory: got an unknown key; did you mean 'memory_mb'?",
                "3:22 sandbox.netwrok: got an unknown key; did you mean 'network'?",
                "3:37 sandbox.color: got an unknown key; void-box ignores it",
            ],
        ),
        (
            "kind: sandbox\nname: x\nmemory_mb: 64\nmodle: x",
            [
                "3:1 memory_mb: got an unknown key; it belongs in sandbox",
                "4:1 modle: got an unknown key; void-box ignores it",
            ],
        ),
        (
            "kind: sandbox\nname: x\nbase: &b {vcpus: 2}\nsandbox: {<<: *b}",
            [
                "3:1 base: got an unknown key; void-box ignores it",
                '4:11 sandbox["<<"]: got an unknown key; '
                "merge keys are not applied; write the values out",
            ],
        ),
        (
            AGENT + "llm: {provider: ollma}\nagent: {prompt: p}",
            [
                "3:17 llm.provider: got 'ollma'; "
                "allowed: claude, claude-personal, codex, ollama, custom, lm-studio; "
                "did you mean 'ollama'? void-box runs any other as claude"
            ],
        ),
        (
            AGENT + "llm: {provider: Claude, model: m}\nagent: {prompt: p}",
            ["3:32 llm.model: got 'm'; provider claude ignores it (Q2)"],
        ),
        (
            AGENT + "llm: {provider: lm-studio, model: m}\nagent: {prompt: p}",
            [
                "3:17 llm.provider: got 'lm-studio'; "
                "void-box 0.2 runs it as claude when it comes from a spec (Q3)"
            ],
        ),
        (
            "kind: sandbox\nname: a/b\nsandbox: {mode: kvm, image: i, "
            "mounts: [{host: h, guest: g, mode: RW}]}\nobserve: {}",
            [
                "2:7 name: got 'a/b'; such a run cannot be addressed by name",
                "3:17 sandbox.mode: got 'kvm'; allowed: auto, local, mock; "
                "any other text means local, without a fallback",
                "3:29 sandbox.image: got 'i'; void-box ignores it for this kind",
                "3:67 sandbox.mounts[0].mode: got 'RW'; allowed: ro, rw; it is mounted read-only",
                "4:10 observe: got a block 'observe'; "
                "void-box reads it and takes its exporters from the environment",
            ],
        ),
        (
            WORKFLOW + STEP + STEP + "  output_step: z\nagent: {prompt: p}",
            [
                "6:14 workflow.steps[1].name: got 'a'; the last step of a name replaces the others",
                "7:16 workflow.output_step: got 'z'; allowed: a; "
                "a run without its output step never succeeds",
                "8:8 agent: got a block 'agent'; it is ignored, because kind is workflow",
            ],
        ),
        (
            WORKFLOW + "    - {name: a, run: {program: p, stdin_from: z}}",
            ["5:47 workflow.steps[0].run.stdin_from: got 'z'; allowed: a; it is ignored"],
        ),
        (
            PIPELINE + BOX.replace("name: b", "name: a"),
            ["6:14 pipeline.boxes[1].name: got 'a'; another box has this name already"],
        ),
        ("kind: sandbox\nname: x\nsandbox: {mode: mock, memory_mb: 1}", []),
    ],
)
def test_warnings(source: str, expected: list[str]) -> None:
    assert _warnings(source) == expected


NO_PROBLEM = [
    AGENT + "agent: {prompt: p}\nllm: {provider: anthropic, credential_proxy: true}",
    AGENT + "agent: {prompt: p}\nllm: {provider: LM-Studio, credential_proxy: true}",
    AGENT + "agent: {prompt: p}\npipeline: {boxes: [{name: b, prompt: p, sandbox: {vcpus: 0}}]}",
    WORKFLOW + STEP + "llm: {provider: ollama, credential_proxy: true}",
    WORKFLOW + STEP + "pipeline: {boxes: [{name: b, prompt: p, sandbox: {memory_mb: 8}}]}",
    "kind: sandbox\nname: x\nllm: {provider: codex, credential_proxy: true}",
]


@pytest.mark.parametrize("source", NO_PROBLEM)
def test_what_void_box_never_looks_at_is_no_error(source: str) -> None:
    assert all(each.severity is Severity.WARNING for each in parse_spec(source.encode()).findings)


@pytest.mark.parametrize("provider", ["claude-personal", "Codex", "ollama", "custom"])
def test_a_proxy_of_credentials_is_for_claude(provider: str) -> None:
    llm = f"llm: {{provider: {provider}, credential_proxy: true}}"
    (error,) = _errors(AGENT + "agent: {prompt: p}\n" + llm)
    assert error.endswith(f"allowed: false for provider {provider.lower()}")
    box = f"    - {{name: a, prompt: p, {llm}, sandbox: {{memory_mb: 8}}}}\n"
    assert len(_errors(PIPELINE + box)) == 2


def test_strict_makes_unknown_keys_errors_and_nothing_else() -> None:
    source = b"kind: sandbox\nname: a/b\nfoo: 1\n"
    with pytest.raises(SpecError) as caught:
        parse_spec(source, strict=True)
    assert [finding.field for finding in caught.value.findings] == ["foo"]
    loaded = parse_spec(b"kind: sandbox\nname: a/b\n", strict=True)
    assert [finding.severity for finding in loaded.findings] == [Severity.WARNING]


def test_the_exception_is_about_the_first_error() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(b"kind: x\nname: [1]\n", origin="f.yaml")
    assert str(caught.value).startswith("kind: got 'x'; allowed: agent,")
    assert (caught.value.field, caught.value.exit_code, caught.value.origin) == (
        "kind",
        2,
        "f.yaml",
    )
    assert len(caught.value.findings) == 2


def test_the_name_decides_on_the_syntax(tmp_path: Path) -> None:
    for name in ("a.yaml", "a.yml", "A.YAML", "b.YmL"):
        (tmp_path / name).write_text("kind: sandbox\nname: x\n")
        assert load_spec(str(tmp_path / name)).syntax == "yaml"
    for name in ("a.json", "noextension", "a.txt"):
        (tmp_path / name).write_text('{"kind": "sandbox", "name": "x"}')
        assert load_spec(str(tmp_path / name)).syntax == "json"


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.yaml: no such file"):
        load_spec(str(tmp_path / "nothing.yaml"))
    with pytest.raises(Unreachable, match="Is a directory"):
        load_spec(str(tmp_path))


def test_an_endless_file_is_cut_short(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"{MAX_BYTES + 1} bytes"):
        load_spec("/dev/zero")


def test_a_pipe_is_a_file_too(tmp_path: Path) -> None:
    fifo = tmp_path / "spec.yaml"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=("kind: sandbox\nname: x\n",))
    writer.start()
    assert load_spec(str(fifo)).spec.name == "x"
    writer.join(timeout=5)
