"""Reading YAML: libyaml's nodes become dicts, lists and scalars, and nothing else.

Unquoted scalars stay ``PlainScalar``: the field that reads one decides on its type.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from shims.core.errors import Described
from shims.core.places import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    DocumentError,
    Mark,
    Marks,
    Path,
    broken,
    duplicate,
    too_deep,
    too_many,
)
from shims.core.scalars import PlainScalar

__all__ = ["parse_yaml"]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml where PyYAML was built with it, and no guessing of types."""

    yaml_implicit_resolvers: dict[str, object] = {}  # noqa: RUF012 - PyYAML's own shape


_STR = "tag:yaml.org,2002:str"
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_COLLECTION_TAGS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})


def parse_yaml(text: str, marks: Marks) -> object:
    """Return what ``text`` says, and note in ``marks`` where. Raises ``DocumentError``."""
    try:
        _refuse_tag_directives(text)
        _scan_yaml(text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = _mark_of(error.problem_mark or error.context_mark)
        if "nesting depth" in (error.problem or ""):  # libyaml's own limit; its scanner runs ahead
            raise too_deep((), mark) from error
        raise DocumentError(broken(error.problem or "no YAML"), "YAML", mark=mark) from error
    except yaml.YAMLError as error:  # a character that YAML does not permit
        raise DocumentError(broken(str(error).splitlines()[0]), "YAML") from error
    if node is None:
        return PlainScalar("")
    return _Builder(marks).build(node, (), 0)


# A YAML line may end in any of these; a byte order mark may precede the first.
_TAG_DIRECTIVE = re.compile("(?:\\A\ufeff?|[\r\n\x85\u2028\u2029])%TAG")
_TOKENS_PER_VALUE = 16  # no value has more: key, anchors, tags and punctuation counted


def _refuse_tag_directives(text: str) -> None:
    """Raise when the text has a %TAG directive.

    libyaml compares each of them with every one before it, so that a megabyte of them takes it a
    quarter of a minute, and they serve nothing: the tags that they abbreviate are refused anyway.
    """
    if not _TAG_DIRECTIVE.search(text):
        return
    # What looks like one may be a line of a quoted scalar, which only the scanner knows.
    for count, token in enumerate(yaml.scan(text, Loader=_Loader)):
        if isinstance(token, yaml.DirectiveToken) and token.name == "TAG":
            got = Described("a %TAG directive")
            mark = _mark_of(token.start_mark)
            raise DocumentError(got, "values without a tag", mark=mark)
        if count > _TOKENS_PER_VALUE * MAX_VALUES:
            raise too_many()


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
                raise too_deep((), _mark_of(event.start_mark))
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
            raise too_many()


class _Builder:
    """Turns nodes into values, counting what aliases expand to."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._characters = 0

    def build(self, node: yaml.Node, path: Path, depth: int) -> object:
        if len(self._marks.values) >= MAX_VALUES:
            raise too_many()
        if depth > MAX_DEPTH:
            raise too_deep(path, _mark_of(node.start_mark))
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
                raise duplicate(key, path, _mark_of(key_node.start_mark))
            place = (*path, key)
            found[key] = self.build(value_node, place, depth + 1)
            if mark := _mark_of(key_node.start_mark):
                self._marks.keys[place] = mark
                if value_node.start_mark.index < key_node.start_mark.index:
                    # An alias: the value stands at the anchor, which explains nothing here.
                    self._marks.values[place] = mark
        return found

    def _build_scalar(self, node: yaml.ScalarNode, path: Path) -> str:
        # Every alias of a plain scalar becomes a copy of its text, here or in the field's type.
        self._characters += len(node.value)
        if self._characters > MAX_BYTES:
            got = Described(f"more than {MAX_BYTES} characters")
            raise DocumentError(got, f"at most {MAX_BYTES} characters, aliases expanded")
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


def _foreign_tag(node: yaml.Node, path: Path) -> DocumentError:
    got = Described(f"tag {node.tag}"[:80])
    mark = _mark_of(node.start_mark)
    return DocumentError(got, "values without a tag", path=path, mark=mark)
