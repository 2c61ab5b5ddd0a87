"""The RunSpec of void-box v1: every field, its default, and nothing else.

Facts: src/spec.rs of the-void-ia/void-box at version 0.2.0. Unknown keys are kept, as extra
attributes, because void-box ignores them; rules that span fields are in ``shims.core.rules``.
All models are frozen, and a value never changes its type silently (see ``shims.core.scalars``).
"""

from __future__ import annotations

from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from shims.core.scalars import (
    Count,
    Flag,
    Listing,
    Maybe,
    Table,
    Text,
    resolve,
    to_mapping,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "AgentSpec",
    "BoxSandbox",
    "BoxStage",
    "FanOutStage",
    "InlineSkill",
    "LlmSpec",
    "McpSkill",
    "MessagingSpec",
    "MountSpec",
    "ObserveSpec",
    "OciSkill",
    "PipelineBox",
    "PipelineInput",
    "PipelineOutput",
    "PipelineSpec",
    "RunKind",
    "RunSpec",
    "SandboxSpec",
    "Section",
    "WorkflowRun",
    "WorkflowSpec",
    "WorkflowStep",
    "choose_form",
    "keys_of",
]


class Section(BaseModel):
    """Base of all parts: frozen, strict about types, lenient about keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _accept_empty(cls, data: Any) -> Any:
        data = to_mapping(data)
        if not isinstance(data, dict):
            return data
        # An unknown key has no field that could decide on the type of its value.
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {key: value if key in known else resolve(value) for key, value in data.items()}


class MountSpec(Section):
    """A host directory in the guest."""

    host: Text
    """Path on the host; relative to the working directory of whoever runs the spec."""
    guest: Text
    mode: Text = "ro"
    """Writable only if exactly ``rw``, which also creates the host directory."""


class SandboxSpec(Section):
    """The machine that a run gets."""

    mode: Text = "auto"
    """``mock``, ``local`` or ``auto``; any other text means local without a fallback."""
    kernel: Maybe[Text] = None
    initramfs: Maybe[Text] = None
    memory_mb: Count = 1024
    vcpus: Count = 1
    network: Flag = False
    """Heeded for workflows and sandboxes; agents always have a network."""
    env: Table[Text] = {}
    """An empty value is taken from the environment of whoever runs the spec."""
    mounts: Listing[MountSpec] = ()
    image: Maybe[Text] = None
    """OCI image whose tree becomes the root file system."""
    guest_image: Maybe[Text] = None
    """OCI image with kernel and initramfs; "" forbids pulling one."""
    snapshot: Maybe[Text] = None


class BoxSandbox(Section):
    """What one pipeline box changes about the sandbox."""

    memory_mb: Maybe[Count] = None
    vcpus: Maybe[Count] = None
    network: Maybe[Flag] = None
    env: Table[Text] = {}
    mounts: Listing[MountSpec] = ()
    snapshot: Maybe[Text] = None


class LlmSpec(Section):
    """The model that an agent talks to."""

    provider: Text
    model: Maybe[Text] = None
    base_url: Maybe[Text] = None
    api_key_env: Maybe[Text] = None
    """Name of the environment variable that holds the key; never the key."""
    credential_proxy: Flag = False
    """Keep the key out of the guest, behind a proxy on the host."""


class ObserveSpec(Section):
    """Telemetry export. void-box reads the block and then takes these from its environment."""

    traces: Flag = False
    metrics: Flag = False
    logs: Flag = False
    otlp_endpoint: Maybe[Text] = None
    service_name: Maybe[Text] = None
    telemetry_buffer_size: Maybe[Count] = None


class OciSkill(Section):
    """A skill that lives in an OCI image."""

    image: Text
    mount: Text
    readonly: Flag = True


class McpSkill(Section):
    """An MCP server that is started in the guest."""

    command: Text
    args: Listing[Text] = ()
    env: Table[Text] = {}


class InlineSkill(Section):
    """A skill whose markdown stands in the spec."""

    name: Text
    content: Text


def keys_of(model: type[BaseModel]) -> dict[str, str]:
    """Return the keys of a section as documents write them, each with its attribute."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


# The number sign keeps a tag apart from the keys of the document in pydantic's locations.
_SKILL_FORMS: dict[str, type[Section]] = {
    "#image": OciSkill,
    "#command": McpSkill,
    "#inline": InlineSkill,
}
_MOST_KEYS_COMPARED = 20


def _skill_tag(value: Any) -> str:
    """Return which form a skill has; the first that fits wins, as in void-box.

    Where none fits, it is the one that most keys belong to, misspelt ones included.
    """
    if isinstance(value, BaseModel):
        return next(tag for tag, form in _SKILL_FORMS.items() if isinstance(value, form))
    if not isinstance(value, dict):
        return "#text"
    for tag, form in _SKILL_FORMS.items():
        if {key for key, each in form.model_fields.items() if each.is_required()} <= value.keys():
            return tag
    return max(_SKILL_FORMS, key=lambda tag: _count_known(value, _SKILL_FORMS[tag]))


def _count_known(keys: Iterable[str], form: type[BaseModel]) -> int:
    known = keys_of(form)
    some = islice(keys, _MOST_KEYS_COMPARED)
    return sum(bool(get_close_matches(str(key).lower(), known, 1)) for key in some)


Skill = Annotated[
    Annotated[str, Tag("#text")]
    | Annotated[OciSkill, Tag("#image")]
    | Annotated[McpSkill, Tag("#command")]
    | Annotated[InlineSkill, Tag("#inline")],
    Discriminator(_skill_tag),
    # void-box buffers these before it knows the form, so unquoted scalars are typed by looks.
    BeforeValidator(resolve),
]


class MessagingSpec(Section):
    """The inbox through which a running agent can be reached."""

    enabled: Flag = False
    provider_bridge: Maybe[Text] = None


class AgentSpec(Section):
    """One agent in one machine."""

    prompt: Text
    skills: Listing[Skill] = ()
    timeout_secs: Maybe[Count] = None
    """Seconds; 0 means no limit, absent 1200."""
    output_file: Maybe[Text] = None
    """Absent: /workspace/output.json."""
    messaging: Maybe[MessagingSpec] = None
    mode: Annotated[Literal["task", "service", "interactive"], BeforeValidator(resolve)] = "task"


class PipelineOutput(Section):
    """A directory that a box fills."""

    name: Text
    guest: Text = "/workspace/output"


class PipelineInput(Section):
    """An output of another box, read-only."""

    source: Text = Field(alias="from")
    guest: Text = "/workspace/input"


class PipelineBox(Section):
    """One agent of a pipeline."""

    name: Text
    prompt: Text
    skills: Listing[Skill] = ()
    llm: Maybe[LlmSpec] = None
    """Replaces the spec's own llm block for this box."""
    timeout_secs: Maybe[Count] = None
    sandbox: Maybe[BoxSandbox] = None
    outputs: Listing[PipelineOutput] = ()
    inputs: Listing[PipelineInput] = ()


class BoxStage(Section):
    """A stage that runs one box."""

    type: Literal["box"]
    name: Text


class FanOutStage(Section):
    """A stage that runs several boxes at once, all with the same input."""

    type: Literal["fan_out"]
    boxes: Listing[Text]


Stage = Annotated[
    BoxStage | FanOutStage,
    Field(discriminator="type"),
    BeforeValidator(resolve),  # buffered by void-box as well, see Skill
]


def choose_form(forms: Sequence[type[Section]], data: Mapping[str, object]) -> type[Section]:
    """Return which of the ``forms`` that one field may have is that of ``data``."""
    if len(forms) == 1:
        return forms[0]
    if BoxStage in forms:
        return FanOutStage if data.get("type") == "fan_out" else BoxStage
    return _SKILL_FORMS[_skill_tag(data)]


class PipelineSpec(Section):
    """Agents one after the other, each seeing what the one before it produced."""

    boxes: Listing[PipelineBox]
    stages: Listing[Stage] = ()
    """Empty: every box is a stage of its own, in order."""


class WorkflowRun(Section):
    """The program of a step."""

    program: Text
    args: Listing[Text] = ()
    stdin_from: Maybe[Text] = None
    """Step whose output is read; absent: the first of depends_on that has output."""


class WorkflowStep(Section):
    """One program of a workflow."""

    name: Text
    run: WorkflowRun
    depends_on: Listing[Text] = ()
    mode: Maybe[Annotated[Literal["service"], BeforeValidator(resolve)]] = None
    timeout_secs: Maybe[Count] = None


class WorkflowSpec(Section):
    """Programs that depend on each other, all in one machine."""

    steps: Listing[WorkflowStep]
    output_step: Maybe[Text] = None
    """Absent: the only step that nobody depends on, else the last."""


RunKind = Literal["agent", "pipeline", "workflow", "sandbox"]


class RunSpec(Section):
    """A whole document. Use ``shims.core.loading`` to read one."""

    api_version: Text = "v1"
    kind: Annotated[RunKind, BeforeValidator(resolve)]
    name: Text
    sandbox: SandboxSpec = SandboxSpec()
    llm: Maybe[LlmSpec] = None
    observe: Maybe[ObserveSpec] = None
    agent: Maybe[AgentSpec] = None
    pipeline: Maybe[PipelineSpec] = None
    workflow: Maybe[WorkflowSpec] = None
