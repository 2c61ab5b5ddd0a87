"""Rules of a RunSpec that span fields.

An error is what void-box refuses when it loads the spec, or what ends every run of it with an
error before anything has run (an unknown step, a cycle); a warning is what it accepts and then
silently treats in a way that few would expect. Quirk numbers (Q1…) are those of the README's
table of deviations.
"""

from __future__ import annotations

from collections import Counter
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import TYPE_CHECKING

from shims.core.errors import Described, shorten
from shims.core.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from shims.core.document import Path
    from shims.core.runspec import (
        AgentSpec,
        LlmSpec,
        MountSpec,
        PipelineSpec,
        RunSpec,
        WorkflowSpec,
    )

__all__ = ["review"]

PROVIDERS = ("claude", "claude-personal", "codex", "ollama", "custom", "lm-studio")
_RESOLVED = frozenset(PROVIDERS) - {"lm-studio"}
"""What void-box knows when it stands in a spec; it runs every other as claude (Q3)."""
_MODEL_IGNORED = frozenset({"claude", "claude-personal", "codex"})
_MODES = ("auto", "local", "mock")
_SKILL_TYPES = ("agent", "file", "remote", "cli", "mcp")
_BLOCKS = ("agent", "pipeline", "workflow")
MEMORY_MIB = range(16, 16384 + 1)
VCPUS = range(1, 256 + 1)


def review(spec: RunSpec) -> list[Finding]:
    """Return what there is to say about ``spec``; empty when all is well. Pure."""
    findings = [*_review_header(spec), *_review_sandbox(spec), *_review_llms(spec)]
    if spec.kind == "agent" and spec.agent is not None:
        findings += _review_agent(spec, spec.agent)
    elif spec.kind == "pipeline" and spec.pipeline is not None:
        findings += _review_pipeline(spec.pipeline)
    elif spec.kind == "workflow" and spec.workflow is not None:
        findings += _review_workflow(spec.workflow)
    findings += _review_skills(spec)
    return findings


def _error(path: Path, value: object, allowed: str, hint: str = "") -> Finding:
    return Finding(Severity.ERROR, path, value, allowed, hint)


def _warning(path: Path, value: object, hint: str, allowed: str = "") -> Finding:
    return Finding(Severity.WARNING, path, value, allowed, hint)


_MOST_NAMES = 10
_LONGEST_NAME = 40
_MOST_COMPARISONS = 10_000


class _Names:
    """Tells which names a field may hold, in a line that stays short however many there are.

    One object serves one review: comparing names takes time, and a document of nothing but wrong
    names must not take it for each of them.
    """

    def __init__(self) -> None:
        self._comparisons_left = _MOST_COMPARISONS

    def tell(self, names: Collection[str], wanted: str) -> str:
        """Return at most ten of ``names`` (no name twice), those nearest to ``wanted`` first."""
        shown = [*self._find_near(names, wanted), *islice(names, _MOST_NAMES)]
        shown = list(dict.fromkeys(shown))[:_MOST_NAMES]
        text = ", ".join(shorten(name, _LONGEST_NAME) for name in shown)
        more = len(names) - len(shown)
        return f"{text}, … and {more} more" if more else text

    def _find_near(self, names: Collection[str], wanted: str) -> list[str]:
        if not _MOST_NAMES < len(names) <= self._comparisons_left:
            return []
        self._comparisons_left -= len(names)
        short = [name for name in names if len(name) <= _LONGEST_NAME]
        return get_close_matches(wanted[:_LONGEST_NAME], short, 3)


def _review_header(spec: RunSpec) -> Iterator[Finding]:
    if spec.api_version != "v1":
        yield _error(("api_version",), spec.api_version, "'v1'")
    if not spec.name.strip() or "/" in spec.name:
        yield _warning(("name",), spec.name, "such a run cannot be addressed by name")
    for block in _BLOCKS:
        present = getattr(spec, block) is not None
        if spec.kind == block and not present:
            yield _error((block,), None, f"a mapping, because kind is {block}")
        elif spec.kind == "sandbox" and present:
            got = Described(f"a block '{block}'")
            yield _error((block,), got, "none of agent, pipeline, workflow when kind is sandbox")
        elif spec.kind != block and present:
            got = Described(f"a block '{block}'")
            yield _warning((block,), got, f"it is ignored, because kind is {spec.kind}")
    if spec.observe is not None:
        got = Described("a block 'observe'")
        yield _warning(
            ("observe",), got, "void-box reads it and takes its exporters from the environment"
        )


def _review_sandbox(spec: RunSpec) -> Iterator[Finding]:
    sandbox = spec.sandbox
    if sandbox.mode not in _MODES and sandbox.mode.lower() not in _MODES:
        hint = "any other text means local, without a fallback"
        yield _warning(("sandbox", "mode"), sandbox.mode, hint, ", ".join(_MODES))
    if sandbox.mode.lower() != "mock":
        yield from _review_size(("sandbox",), sandbox.memory_mb, sandbox.vcpus)
    if spec.kind == "sandbox" and sandbox.image:
        yield _warning(("sandbox", "image"), sandbox.image, "void-box ignores it for this kind")
    yield from _review_mounts(("sandbox", "mounts"), sandbox.mounts)
    boxes = spec.pipeline.boxes if spec.kind == "pipeline" and spec.pipeline else ()
    for i, box in enumerate(boxes):
        if box.sandbox is not None:
            path: Path = ("pipeline", "boxes", i, "sandbox")
            if sandbox.mode.lower() != "mock":
                yield from _review_size(path, box.sandbox.memory_mb, box.sandbox.vcpus)
            yield from _review_mounts((*path, "mounts"), box.sandbox.mounts)


def _review_size(path: Path, memory_mb: int | None, vcpus: int | None) -> Iterator[Finding]:
    for key, value, limits in (("memory_mb", memory_mb, MEMORY_MIB), ("vcpus", vcpus, VCPUS)):
        if value is not None and value not in limits:
            unit = "MiB" if key == "memory_mb" else "vCPUs"
            yield _error((*path, key), value, f"{limits[0]} to {limits[-1]} {unit}")


def _review_mounts(path: Path, mounts: tuple[MountSpec, ...]) -> Iterator[Finding]:
    for i, mount in enumerate(mounts):
        if mount.mode not in ("ro", "rw"):
            hint = "it is mounted read-only"
            yield _warning((*path, i, "mode"), mount.mode, hint, "ro, rw")


def _review_llms(spec: RunSpec) -> Iterator[Finding]:
    if spec.kind not in ("agent", "pipeline"):
        return  # nobody there who talks to a model
    if spec.llm is not None:
        yield from _review_llm(("llm",), spec.llm)
    if spec.kind == "pipeline" and spec.pipeline is not None:
        for i, box in enumerate(spec.pipeline.boxes):
            if box.llm is not None:
                yield from _review_llm(("pipeline", "boxes", i, "llm"), box.llm)


def _review_llm(path: Path, llm: LlmSpec) -> Iterator[Finding]:
    provider = llm.provider.lower()
    if provider not in PROVIDERS:
        near = get_close_matches(provider, PROVIDERS, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        hint += "void-box runs any other as claude"
        yield _warning((*path, "provider"), llm.provider, hint, ", ".join(PROVIDERS))
    elif provider == "lm-studio":
        hint = "void-box 0.2 runs it as claude when it comes from a spec (Q3)"
        yield _warning((*path, "provider"), llm.provider, hint)
    if llm.model is not None and provider in _MODEL_IGNORED:
        yield _warning((*path, "model"), llm.model, f"provider {provider} ignores it (Q2)")
    if llm.credential_proxy and provider in _RESOLVED - {"claude"}:
        yield _error((*path, "credential_proxy"), True, f"false for provider {provider}")


def _review_agent(spec: RunSpec, agent: AgentSpec) -> Iterator[Finding]:
    path: Path = ("agent",)
    if agent.mode != "interactive" and not agent.prompt.strip():
        yield _error((*path, "prompt"), agent.prompt, "text that is not blank")
    if agent.mode != "task" and agent.timeout_secs is not None:
        allowed = f"no timeout_secs together with mode: {agent.mode}"
        yield _error((*path, "timeout_secs"), agent.timeout_secs, allowed)
    if agent.mode == "service" and agent.output_file is None:
        yield _error((*path, "output_file"), None, "a path, because mode is service")
    if agent.mode != "task" and spec.llm is not None and spec.llm.credential_proxy:
        yield _error(("llm", "credential_proxy"), True, f"false together with mode: {agent.mode}")


def _review_skills(spec: RunSpec) -> Iterator[Finding]:
    listings: list[tuple[Path, tuple[object, ...]]] = []
    if spec.kind == "agent" and spec.agent is not None:
        listings.append((("agent", "skills"), spec.agent.skills))
    elif spec.kind == "pipeline" and spec.pipeline is not None:
        boxes = enumerate(spec.pipeline.boxes)
        listings += [(("pipeline", "boxes", i, "skills"), box.skills) for i, box in boxes]
    for path, skills in listings:
        for i, skill in enumerate(skills):
            if isinstance(skill, str) and skill.partition(":")[0] not in _SKILL_TYPES:
                allowed = f"TYPE:VALUE with one of {', '.join(_SKILL_TYPES)} as TYPE"
                yield _error((*path, i), skill, allowed)
            elif isinstance(skill, str) and ":" not in skill:
                yield _error((*path, i), skill, f"{skill}:VALUE")


def _review_pipeline(pipeline: PipelineSpec) -> Iterator[Finding]:
    if not pipeline.boxes:
        yield _error(("pipeline", "boxes"), pipeline.boxes, "at least one box")
    yield from _review_stages(pipeline)
    tell = _Names().tell
    seen: set[str] = set()
    # A dictionary keeps an order and is quick to look into.
    names = sorted(output.name for box in pipeline.boxes for output in box.outputs)
    outputs = dict.fromkeys(names)
    for i, box in enumerate(pipeline.boxes):
        path: Path = ("pipeline", "boxes", i)
        if box.name in seen:
            yield _warning((*path, "name"), box.name, "another box has this name already")
        seen.add(box.name)
        for j, needed in enumerate(box.inputs):
            if needed.source not in outputs:
                known = tell(outputs, needed.source) or "there is no output in this pipeline"
                yield _error((*path, "inputs", j, "from"), needed.source, known)


def _review_stages(pipeline: PipelineSpec) -> Iterator[Finding]:
    tell = _Names().tell
    left = Counter(box.name for box in pipeline.boxes)
    for i, stage in enumerate(pipeline.stages):
        path: Path = ("pipeline", "stages", i)
        if stage.type == "fan_out":
            if i == 0:
                yield _error((*path, "type"), stage.type, "box, for the first stage")
            wanted: list[tuple[Path, str]] = [
                ((*path, "boxes", j), name) for j, name in enumerate(stage.boxes)
            ]
        else:
            wanted = [((*path, "name"), stage.name)]
        for place, name in wanted:
            if name not in left:
                allowed = tell(left, name) or "no box is left"
                yield _error(place, name, allowed, "every box runs once")
            elif left[name] > 1:
                left[name] -= 1
            else:
                del left[name]


def _review_workflow(workflow: WorkflowSpec) -> Iterator[Finding]:
    path: Path = ("workflow", "steps")
    if not workflow.steps:
        yield _error(path, workflow.steps, "at least one step")
    tell = _Names().tell
    names = {step.name: None for step in workflow.steps}
    seen: set[str] = set()
    for i, step in enumerate(workflow.steps):
        if step.name in seen:
            hint = "the last step of a name replaces the others"
            yield _warning((*path, i, "name"), step.name, hint)
        seen.add(step.name)
        if step.mode == "service" and step.timeout_secs is not None:
            allowed = "no timeout_secs together with mode: service"
            yield _error((*path, i, "timeout_secs"), step.timeout_secs, allowed)
        for j, needed in enumerate(step.depends_on):
            if needed not in names:
                yield _error((*path, i, "depends_on", j), needed, tell(names, needed))
        stdin_from = step.run.stdin_from
        if stdin_from is not None and stdin_from not in names:
            known = tell(names, stdin_from)
            yield _warning((*path, i, "run", "stdin_from"), stdin_from, "it is ignored", known)
    if workflow.output_step is not None and workflow.output_step not in names:
        hint = "a run without its output step never succeeds"
        known = tell(names, workflow.output_step)
        yield _warning(("workflow", "output_step"), workflow.output_step, hint, known)
    yield from _review_cycles(workflow)


def _review_cycles(workflow: WorkflowSpec) -> Iterator[Finding]:
    waits_for = {step.name: step.depends_on for step in workflow.steps}
    try:
        TopologicalSorter(waits_for).prepare()
    except CycleError as error:
        # The list goes from what is needed to who needs it, and ends where it began.
        ring: list[str] = error.args[1][::-1]
        i = next(i for i, step in enumerate(workflow.steps) if step.name == ring[0])
        got = Described(f"circular dependency {' → '.join(ring)}")
        path: Path = ("workflow", "steps", i, "depends_on")
        yield _error(path, got, "steps that do not wait for themselves")
