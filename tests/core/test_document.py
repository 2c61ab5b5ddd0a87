"""Documents that nobody vouches for: hostile ones end in one error, and none escapes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shims.core.document import MAX_BYTES, MAX_DEPTH, format_path
from shims.core.findings import SpecError
from shims.core.loading import LoadedSpec, parse_spec

if TYPE_CHECKING:
    from shims.core.document import Path, Syntax


def _errors(source: bytes, syntax: Syntax = "yaml") -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(source, syntax)
    return [finding.text for finding in caught.value.findings]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("a",), "a"),
        (("workflow", "steps", 2, "timeout_secs"), "workflow.steps[2].timeout_secs"),
        (("env", "MY-KEY"), "env.MY-KEY"),
        (("env", "a.b", "ä b"), 'env["a.b"]["ä b"]'),
    ],
)
def test_paths_are_written_as_people_write_them(path: Path, text: str) -> None:
    assert format_path(path) == text


def _bomb(levels: int) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("source", "syntax", "message"),
    [
        (_bomb(12), "yaml", "more than 100000 values"),
        (b"a: &a [*a]", "yaml", "more than 100 levels"),
        (b"[" * 100_000, "yaml", "more than 100 levels"),
        (b"- " * 100_000, "yaml", "more than 100 levels"),
        (b"[" + b"[]," * 1_000_000 + b"[]]", "yaml", "more than 100000 values"),
        (b"[" * 100_000, "json", "more than 100 levels"),
        (b"[" * 200 + b"]" * 200, "json", "more than 100 levels"),
        (b"[" + b"[]," * 200_000 + b"[]]", "json", "more than 100000 values"),
        (b"[" + b"9" * 5000 + b"]", "json", "a number of thousands of digits"),
        (b"[1e999]", "json", "a number out of range"),
        (b"[NaN]", "json", "NaN"),
        (b"x" * (MAX_BYTES + 1), "yaml", f"{MAX_BYTES + 1} bytes"),
        (b"kind: \xff", "yaml", "byte 0xff"),
        ("kind: x".encode("utf-16"), "yaml", "byte 0xff"),
        (b"\xef\xbb\xbf{}", "json", "broken syntax"),
        (b"a: \x00", "yaml", "broken syntax"),
        (b"a: 1\na: 2", "yaml", "the same key a second time"),
        (b'{"a": {"b": 1, "b": 2}}', "json", "the same key a second time"),
        (b"a: !!python/object/apply:os.system [ls]", "yaml", "tag tag:yaml.org,2002:python/object"),
        (b"a: !include /etc/passwd", "yaml", "tag !include"),
        (b"a: !!binary aGk=", "yaml", "tag tag:yaml.org,2002:binary"),
        (b"? {a: 1}\n: 2", "yaml", "a key that is no scalar"),
        (b"a: 1\n---\nb: 2\n", "yaml", "a second document"),
        (b"a: *nobody", "yaml", "undefined alias"),
        (b"a: 'open", "yaml", "broken syntax"),
        (b"a: b: c", "yaml", "broken syntax"),
        (b"{}{}", "json", "broken syntax"),
        (b"{'a': 1}", "json", "broken syntax"),
        (b"", "json", "broken syntax"),
    ],
)
@pytest.mark.timeout(20)
def test_hostile_documents_end_in_one_error(source: bytes, syntax: Syntax, message: str) -> None:
    (error,) = _errors(source, syntax)
    assert message in error
    assert len(error) < 300


@pytest.mark.parametrize("source", [b"", b"~", b"[]", b"- 1", b"'text'", b"5"])
def test_documents_that_are_no_mapping(source: bytes) -> None:
    assert all("kind" in line or "name" in line or "a mapping" in line for line in _errors(source))


def test_deep_is_fine_up_to_the_limit() -> None:
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    for syntax in ("yaml", "json"):
        text = f'{{"kind": "sandbox", "name": "x", "future": {deep}}}'
        assert parse_spec(text.encode(), syntax).spec.model_extra


def test_aliases_are_fine_in_moderation() -> None:
    source = b"kind: sandbox\nname: &n x\nsandbox: {env: {A: *n, B: *n}}"
    assert parse_spec(source).spec.sandbox.env == {"A": "x", "B": "x"}


_WORDS = """
    kind name agent sandbox env skills prompt workflow steps run pipeline boxes stages type llm
    provider mounts << a.b ä
"""
_KEYS = st.sampled_from(["", *_WORDS.split()])
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["agent", "workflow", "box", "fan_out", "service", "v1"])
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=30,
)


def _load_or_refuse(source: bytes, syntax: Syntax) -> LoadedSpec | None:
    try:
        loaded = parse_spec(source, syntax)
    except SpecError as error:
        lines = [finding.text for finding in error.findings]
        if not lines or any("\n" in line for line in lines):
            pytest.fail(f"{lines}")
        return None
    assert loaded.source == source
    return loaded


@given(st.dictionaries(_KEYS, _TREES, max_size=8))
def test_any_tree_is_loaded_or_refused(tree: dict[str, object]) -> None:
    source = json.dumps(tree).encode()
    as_json = _load_or_refuse(source, "json")
    as_yaml = _load_or_refuse(source, "yaml")
    if as_json is not None and as_yaml is not None:
        assert as_json.spec == as_yaml.spec


@given(st.binary(max_size=200), st.sampled_from(["yaml", "json"]))
def test_any_bytes_are_loaded_or_refused(source: bytes, syntax: Syntax) -> None:
    _load_or_refuse(source, syntax)


@given(st.text(alphabet="{}[]&*a:-? \n'\"|>!#%@,1~", max_size=60))
def test_any_punctuation_is_loaded_or_refused(text: str) -> None:
    _load_or_refuse(b"kind: sandbox\nname: x\nextra: " + text.encode(), "yaml")
