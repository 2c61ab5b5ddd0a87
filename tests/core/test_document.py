"""Documents that nobody vouches for: hostile ones end in one error, and none escapes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shims.core.document import MAX_BYTES, MAX_DEPTH, Mark, format_path, read_document
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


def _copies(count: int, size: int, quote: str = "") -> bytes:
    text = quote + "x" * size + quote
    return f"a: &a {text}\nb: [{', '.join(['*a'] * count)}]".encode()


def _tags(count: int) -> bytes:
    return "".join(f"%TAG !{i}! x\n" for i in range(count)).encode() + b"---\nb: 2\n"


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
        (b'{"a": {"b": 1, "b": 2}}', "json", "a.b: got the same key a second time"),
        (b"a: !!python/object/apply:os.system [ls]", "yaml", "tag tag:yaml.org,2002:python/object"),
        (b"a: !include /etc/passwd", "yaml", "tag !include"),
        (b"a: !!binary aGk=", "yaml", "tag tag:yaml.org,2002:binary"),
        (b"? {a: 1}\n: 2", "yaml", "a key that is no scalar"),
        (b"a: 1\n---\nb: 2\n", "yaml", "a second document"),
        (_copies(1000, 1_000_000), "yaml", f"more than {MAX_BYTES} characters"),
        (_copies(3, 2_000_000, "'"), "yaml", f"more than {MAX_BYTES} characters"),
        (_tags(90_000), "yaml", "a %TAG directive"),
        (b"\xef\xbb\xbf" + _tags(1), "yaml", "a %TAG directive"),
        (b"a: 1\n...\n" + _tags(90_000), "yaml", "a %TAG directive"),
        (b"a: 1\r" + _tags(1), "yaml", "a %TAG directive"),
        (b"a: [" + b"[]," * 1_300_000 + b"]\n" + _tags(1), "yaml", "more than 100000 values"),
        (b'{"a": "\\ud800"}', "json", "a: got half of a character"),
        (b'{"a": {"\\udfff": 1}}', "json", "a: got half of a character"),
        (b'{"a": {"b": [1, -1E999]}}', "json", "a.b[1]: got a number out of range"),
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


def test_what_only_looks_like_a_directive_is_text() -> None:
    source = b'kind: sandbox\nname: x\nsandbox: {env: {A: "b\n%TAG ! c"}}'
    assert parse_spec(source).spec.sandbox.env == {"A": "b %TAG ! c"}


@pytest.mark.parametrize(
    ("source", "line", "column"),
    [
        ('{"a": 1,\n "b": {"c": [],\n  "c": 2}}', 3, 3),
        ('{"a": [1,\n  NaN]}', 2, 3),
        ('{"\U0001f600": "\\ud83d\\ude00", "b": "\\uDE00"}', 1, 28),
        ('{"a": 1e5, "b": 1.0e400}', 1, 17),
        ("[" * 102 + "]" * 102, 1, 102),
    ],
)
def test_json_errors_have_a_place(source: str, line: int, column: int) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(source.encode(), "json")
    assert caught.value.findings[0].mark == Mark(line, column)


_PAIR = '"k": "\\ud83d\\ude00\x7f [\\"] {,:}"'  # what libyaml refuses, or might take for structure


@pytest.mark.timeout(20)
def test_findings_in_json_have_places_and_are_quick() -> None:
    keys = ",\n".join(f'"k{i}": "{"v" * 300}"' for i in range(2000))
    source = f'{{"kind": "sandbox", "name": "x",\n{_PAIR},\n{keys}}}'
    findings = parse_spec(source.encode(), "json").findings
    assert [finding.mark for finding in findings] == [Mark(i + 2, 1) for i in range(2001)]


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


def _places(value: object, path: Path = ()) -> list[tuple[Path, object]]:
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [(path, value), *(place for key, each in inner for place in _places(each, (*path, key)))]


@given(_TREES, st.sampled_from([None, 1]), st.booleans())
def test_json_places_are_where_the_values_stand(
    tree: object, indent: int | None, raw: bool
) -> None:
    text = json.dumps(tree, indent=indent, ensure_ascii=not raw)
    assume("Infinity" not in text)  # Python writes it, and JSON has no such number
    document = read_document(text.encode(), "json")
    assert document.data == tree
    lines = text.split("\n")
    for path, value in _places(tree):
        mark = document.find_mark(path)
        assert mark is not None
        start = sum(len(line) + 1 for line in lines[: mark.line - 1]) + mark.column - 1
        assert json.JSONDecoder().raw_decode(text, start)[0] == value


@given(st.binary(max_size=200), st.sampled_from(["yaml", "json"]))
def test_any_bytes_are_loaded_or_refused(source: bytes, syntax: Syntax) -> None:
    _load_or_refuse(source, syntax)


@given(st.text(alphabet="{}[]&*a:-? \n'\"|>!#%@,1~", max_size=60))
def test_any_punctuation_is_loaded_or_refused(text: str) -> None:
    _load_or_refuse(b"kind: sandbox\nname: x\nextra: " + text.encode(), "yaml")
