"""What a config.json must look like before anybody looks into it.

Only the fields that the shim itself reads are here; everything else in it is judged where it is
used, by the plan's compiler. Imports little: the daemon reads the file before anything else.
"""

from __future__ import annotations

from typing import Any

from shims.core.errors import InputError

__all__ = ["require_shape", "require_texts"]

# A type, a list with the shape of its items, or an object with those of its fields ("*": any).
_SPEC: dict[str, Any] = {
    "annotations": {"*": str},
    "hostname": str,
    "root": {"path": str},
    "process": {"oomScoreAdj": int},
    "mounts": [{"type": str, "source": str, "destination": str, "options": [str]}],
    "linux": {
        "cgroupsPath": str,
        "namespaces": [{"type": str, "path": str}],
        "resources": {"memory": {"limit": int}},
    },
}
_WORDS = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}


def require_shape(value: object, shape: Any = _SPEC, path: str = "") -> None:
    """Raise ``InputError`` with the path of the first field that is of another kind.

    A field that is null is as good as none, for Go writes some of them; an item is not.
    """
    kind = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(path, value, _WORDS[kind])
    if isinstance(value, list):
        for index, item in enumerate(value):
            require_shape(item, shape[0], f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            inner = shape.get(name, shape.get("*"))
            if inner is not None and item is not None:
                require_shape(item, inner, f"{path}.{name}" if path else name)


def require_texts(spec: object) -> None:
    """Raise ``InputError`` for a text, anywhere, that no file, argument or message can hold.

    Such are a NUL byte, and half a character of two (``\\ud800``), which Go would never write.
    """
    todo = [(spec, "")]
    while todo:
        value, path = todo.pop()
        if isinstance(value, str):
            if "\0" in value or not _is_unicode(value):
                raise InputError(path, value, "Unicode text without NUL bytes")
        elif isinstance(value, list):
            todo += ((item, f"{path}[{index}]") for index, item in enumerate(value))
        elif isinstance(value, dict):
            todo += ((name, path) for name in value)
            todo += ((item, f"{path}.{name}" if path else name) for name, item in value.items())


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
