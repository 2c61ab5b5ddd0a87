"""What is said about a spec: it explains, stays short, and is text only."""

from __future__ import annotations

import pytest

from shims.core.findings import Finding, SpecError
from shims.core.loading import parse_spec

AGENT = "kind: agent\nname: x\n"
WORKFLOW = "kind: workflow\nname: x\nworkflow:\n  steps:\n"
PIPELINE = "kind: pipeline\nname: x\npipeline:\n  boxes:\n"
BOX = "    - {name: a, prompt: p}\n"


def _refuse(source: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_spec(source.encode())
    return caught.value


def _tell(finding: Finding) -> str:
    assert finding.mark is not None
    return f"{finding.mark.line}:{finding.mark.column} {finding.text}"


def _texts(source: str) -> list[str]:
    return [finding.text for finding in _refuse(source).findings]


@pytest.mark.parametrize(
    ("source", "errors", "warnings"),
    [
        (
            AGENT + "agnet: {prompt: p}",
            [
                "1:1 agent: got nothing; allowed: a mapping, because kind is agent; "
                "is 'agnet' a misspelling of it?"
            ],
            [],
        ),
        (
            AGENT + "agent: {prompt: p, mode: service, outputfile: /o, color: red}",
            [
                "3:8 agent.output_file: got nothing; allowed: a path, because mode is service; "
                "is 'outputfile' a misspelling of it?"
            ],
            ["3:51 agent.color: got an unknown key; void-box ignores it"],
        ),
        (
            AGENT + "agent: {prompt: p, skills: [{comand: x, args: [a]}, {nam: n, content: c}]}",
            [
                "3:29 agent.skills[0].command: got nothing; "
                "allowed: a value, this key is required; is 'comand' a misspelling of it?",
                "3:53 agent.skills[1].name: got nothing; "
                "allowed: a value, this key is required; is 'nam' a misspelling of it?",
            ],
            [],
        ),
        (
            AGENT + "agent: {prompt: p, timeout_secs: 5m, skils: [], "
            "skills: [{command: c, envs: {}}]}\nsandbox: {vcpu: 2}",
            ["3:34 agent.timeout_secs: got '5m'; allowed: a whole number, 0 or more"],
            [
                "3:38 agent.skils: got an unknown key; did you mean 'skills'?",
                "3:71 agent.skills[0].envs: got an unknown key; did you mean 'env'?",
                "4:11 sandbox.vcpu: got an unknown key; did you mean 'vcpus'?",
            ],
        ),
        (
            PIPELINE
            + BOX
            + "  stages: [{type: fan_out, boxs: [a]}, {type: box, nme: a, boxes: []}]",
            [
                "6:12 pipeline.stages[0].boxes: got nothing; "
                "allowed: a value, this key is required; is 'boxs' a misspelling of it?",
                "6:40 pipeline.stages[1].name: got nothing; "
                "allowed: a value, this key is required; is 'nme' a misspelling of it?",
            ],
            ["6:60 pipeline.stages[1].boxes: got an unknown key; it belongs in pipeline"],
        ),
    ],
)
def test_a_misspelt_key_explains_what_is_missing(
    source: str, errors: list[str], warnings: list[str]
) -> None:
    error = _refuse(source)
    assert [_tell(finding) for finding in error.findings] == errors
    assert [_tell(finding) for finding in error.warnings] == warnings


def test_many_names_are_told_briefly_and_the_nearest_first() -> None:
    steps = "".join(f"    - {{name: step-{i}, run: {{program: p}}}}\n" for i in range(30))
    wrong = "    - {name: z, run: {program: p}, depends_on: [step29, q]}\n"
    first, second = (line.partition("; allowed: ")[2] for line in _texts(WORKFLOW + steps + wrong))
    assert first.startswith("step-29, ")
    assert second == ", ".join(f"step-{i}" for i in range(10)) + ", … and 21 more"
    assert first.count("step-") == 10
    long = "    - {name: %s, run: {program: p}, depends_on: [q]}\n" % ("n" * 1000)
    assert len(_texts(WORKFLOW + long)[0]) < 200


def _many_boxes(count: int) -> str:
    boxes = [f"    - {{name: s{i}, prompt: p, inputs: [{{from: q}}]}}\n" for i in range(count)]
    stages = [f"    - {{type: box, name: z{i}}}\n" for i in range(count)]
    return PIPELINE + "".join([*boxes, "  stages:\n", *stages])


def _many_steps(count: int) -> str:
    step = "    - {{name: s{0}, run: {{program: p, stdin_from: r}}, depends_on: [q{0}]}}\n"
    return WORKFLOW + "".join(step.format(i) for i in range(count))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("source", [_many_boxes(4000), _many_steps(4000)])
def test_what_is_said_grows_with_the_document_and_no_faster(source: str) -> None:
    error = _refuse(source)
    assert len(error.findings) >= 4000
    assert sum(len(finding.text) for finding in error.findings) < 4000 * 500


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (
            WORKFLOW + '    - {name: "a\\e[2J\\nb", depends_on: [q], run: {program: p}}',
            r"a\x1b[2J\nb",
        ),
        (
            WORKFLOW + '    - {name: "a\\u202E", depends_on: ["a\\u202E"], run: {program: p}}',
            r"\u202e",
        ),
        ("kind: !<%1b%5b31m> x\nname: y", r"tag \x1b[31m"),
        (AGENT + 'agent: {prompt: p, mode: service, "output_file\\e": o}', r"'output_file\x1b'"),
        (AGENT + 'agent: {prompt: []}\nsandbox: {env: {"a\\x9b": []}}', r"a\x9b"),
    ],
)
def test_text_of_a_document_cannot_act_on_a_terminal(source: str, shown: str) -> None:
    error = _refuse(source)
    texts = [finding.text for finding in (*error.findings, *error.warnings)]
    assert any(shown in text for text in texts)
    assert all(text.isprintable() for text in [*texts, str(error)])
