"""Reading a YAML or JSON document that nobody vouches for.

Bytes go in; a tree of dicts, lists and scalars comes out, with the line and column of every value.
Whatever a hostile or broken file may hold ends in one ``DocumentError``: too many bytes, no UTF-8,
too deep, a small file whose aliases expand to a huge one, a key that stands twice, two documents.
No object is ever constructed from a tag.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import yaml

from shims.core.errors import Described, InputError
from shims.core.scalars import PlainScalar

__all__ = ["Document", "DocumentError", "Mark", "Path", "Syntax", "format_path", "read_document"]

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 100
MAX_VALUES = 100_000

Syntax = Literal["yaml", "json"]
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text; line and column count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Marks:
    """Where everything stands in one text."""

    values: dict[Path, Mark]
    keys: dict[Path, Mark]


class DocumentError(InputError):
    """A text that is no usable document; ``mark`` says where, when that is known."""

    def __init__(
        self, value: object, allowed: str, *, path: Path = (), mark: Mark | None = None
    ) -> None:
        super().__init__(format_path(path) or "document", value, allowed)
        self.path = path
        self.mark = mark


@dataclass(frozen=True)
class Document:
    """What a text says, and where it says it."""

    data: object
    """Dicts with text keys, lists, and scalars (``PlainScalar`` where YAML had no quotes)."""
    text: str
    syntax: Syntax
    _marks: Marks = field(default_factory=lambda: Marks({}, {}))

    def find_mark(self, path: Path, *, of_key: bool = False) -> Mark | None:
        """Return where the value at ``path`` stands, or its nearest parent; None if unknown.

        ``of_key`` asks for the key in front of the value instead.
        """
        if not self._marks.values and self.syntax == "json":
            _find_json_marks(self.text, self._marks)
        if of_key and (mark := self._marks.keys.get(path)):
            return mark
        for length in range(len(path), -1, -1):
            if mark := self._marks.values.get(path[:length]):
                return mark
        return None


def format_path(path: Path) -> str:
    """Return ``path`` as people write it: ``workflow.steps[2].env["a.b"]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.replace("-", "_").isidentifier():
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def read_document(source: bytes, syntax: Syntax) -> Document:
    """Return the document that ``source`` holds. Raises ``DocumentError``; does no I/O."""
    if len(source) > MAX_BYTES:
        raise DocumentError(Described(f"{len(source)} bytes"), f"at most {MAX_BYTES} bytes")
    try:
        text = source.decode("utf-8")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        column = error.start - (source.rfind(b"\n", 0, error.start) + 1) + 1
        got = Described(f"byte 0x{source[error.start]:02x}")
        raise DocumentError(got, "text in UTF-8", mark=Mark(line, column)) from error
    if syntax == "json":
        return Document(_parse_json(text), text, syntax)
    marks = Marks({}, {})
    return Document(_parse_yaml(text, marks), text, syntax, marks)


# ---------------------------------------------------------------------------------------- JSON


def _parse_json(text: str) -> object:
    try:
        data: object = json.loads(
            text, object_pairs_hook=_make_object, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        mark = Mark(error.lineno, error.colno)
        raise DocumentError(_broken(error.msg), "JSON", mark=mark) from error
    except RecursionError as error:
        raise _too_deep(()) from error
    except ValueError as error:  # an integer with more digits than Python converts
        raise DocumentError(Described("a number of thousands of digits"), "JSON") from error
    _measure(data)
    return data


def _make_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _duplicate(key, ())
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise DocumentError(Described(name), "JSON, which knows finite numbers only")


def _measure(data: object) -> None:
    """Walk ``data`` without recursion and raise when it is too deep or too large."""
    waiting = [(data, 0)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise _too_many()
        if depth > MAX_DEPTH:
            raise _too_deep(())
        if isinstance(value, float) and not math.isfinite(value):
            raise DocumentError(Described("a number out of range"), "finite numbers")
        if isinstance(value, dict):
            waiting.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            waiting.extend((item, depth + 1) for item in value)


def _find_json_marks(text: str, marks: Marks) -> None:
    """Fill ``marks`` for a JSON text as far as possible: YAML reads most JSON, not all."""
    try:
        _parse_yaml(text, marks)
    except DocumentError:
        return


# ---------------------------------------------------------------------------------------- YAML


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml where PyYAML was built with it, and no guessing of types."""

    yaml_implicit_resolvers: dict[str, object] = {}  # noqa: RUF012 - PyYAML's own shape


_STR = "tag:yaml.org,2002:str"
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_COLLECTION_TAGS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})


def _parse_yaml(text: str, marks: Marks) -> object:
    try:
        _scan_yaml(text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = _mark_of(error.problem_mark or error.context_mark)
        if "nesting depth" in (error.problem or ""):  # libyaml's own limit; its scanner runs ahead
            raise _too_deep((), mark) from error
        raise DocumentError(_broken(error.problem or "no YAML"), "YAML", mark=mark) from error
    except yaml.YAMLError as error:  # a character that YAML does not permit
        raise DocumentError(_broken(str(error).splitlines()[0]), "YAML") from error
    if node is None:
        return PlainScalar("")
    return _Builder(marks).build(node, (), 0)


def _scan_yaml(text: str) -> None:
    """Raise when the text is too deep or too large, before anything is built from it.

    libyaml's nodes cost a hundred times the bytes that they stand for, and composing them
    recurses; events do neither.
    """
    depth = documents = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _too_deep((), _mark_of(event.start_mark))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise DocumentError(
                    Described("a second document"),
                    "one document per file",
                    mark=_mark_of(event.start_mark),
                )
        if count > 2 * MAX_VALUES:
            raise _too_many()


class _Builder:
    """Turns nodes into values, counting what aliases expand to."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def build(self, node: yaml.Node, path: Path, depth: int) -> object:
        if len(self._marks.values) >= MAX_VALUES:
            raise _too_many()
        if depth > MAX_DEPTH:
            raise _too_deep(path[:3], _mark_of(node.start_mark))
        if mark := _mark_of(node.start_mark):
            self._marks.values[path] = mark
        if isinstance(node, yaml.ScalarNode):
            return self._build_scalar(node, path)
        if node.tag not in _COLLECTION_TAGS:
            raise _foreign_tag(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        return self._build_mapping(node, path, depth)

    def _build_mapping(self, node: yaml.Node, path: Path, depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = self._build_key(key_node, path)
            if key in found:
                raise _duplicate(key, path, _mark_of(key_node.start_mark))
            place = (*path, key)
            found[key] = self.build(value_node, place, depth + 1)
            if mark := _mark_of(key_node.start_mark):
                self._marks.keys[place] = mark
                if value_node.start_mark.index < key_node.start_mark.index:
                    # An alias: the value stands at the anchor, which explains nothing here.
                    self._marks.values[place] = mark
        return found

    def _build_scalar(self, node: yaml.ScalarNode, path: Path) -> str:
        if node.tag in _PLAIN_TAGS:
            return PlainScalar(node.value)
        if node.tag != _STR:
            raise _foreign_tag(node, path)
        # libyaml says "" for the plain style, PyYAML's own parser says None.
        return PlainScalar(node.value) if not node.style else str(node.value)

    def _build_key(self, node: yaml.Node, path: Path) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise DocumentError(
                Described("a key that is no scalar"),
                "text as key",
                path=path,
                mark=_mark_of(node.start_mark),
            )
        return str(self._build_scalar(node, path))


def _mark_of(mark: Any) -> Mark | None:
    return Mark(mark.line + 1, mark.column + 1) if mark else None


def _broken(problem: str) -> Described:
    return Described(f"broken syntax ({problem[:1].lower()}{problem[1:]})")


def _duplicate(key: str, path: Path, mark: Mark | None = None) -> DocumentError:
    got = Described("the same key a second time")
    return DocumentError(got, "each key once", path=(*path, key), mark=mark)


def _foreign_tag(node: yaml.Node, path: Path) -> DocumentError:
    got = Described(f"tag {node.tag}"[:80])
    mark = _mark_of(node.start_mark)
    return DocumentError(got, "values without a tag", path=path, mark=mark)


def _too_deep(path: Path, mark: Mark | None = None) -> DocumentError:
    got = Described(f"more than {MAX_DEPTH} levels")
    return DocumentError(got, f"at most {MAX_DEPTH} levels of nesting", path=path, mark=mark)


def _too_many() -> DocumentError:
    got = Described(f"more than {MAX_VALUES} values")
    return DocumentError(got, f"at most {MAX_VALUES} values, aliases expanded")
