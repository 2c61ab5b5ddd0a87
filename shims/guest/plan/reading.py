"""Typed access to decoded JSON, with the path of the field in every complaint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shims.core.errors import InputError

__all__ = ["INT32_MAX", "UINT32_MAX", "UINT64_MAX", "Reader", "encode_path"]

INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1
UINT64_MAX = 2**64 - 1


def encode_path(text: str) -> bytes:
    """Encode a path or argument as the bytes that the guest's kernel sees.

    Go's JSON replaces what is not UTF-8, so surrogates only come from callers in Python.
    """
    return text.encode("utf-8", "surrogateescape")


class Reader:
    """One JSON object of the spec. A field that is absent or null reads as its default."""

    def __init__(self, value: object, path: str) -> None:
        if value is not None and not isinstance(value, Mapping):
            raise InputError(path, value, "an object")
        self.value: Mapping[str, Any] = value if value is not None else {}
        self.path = path

    def at(self, name: str) -> str:
        """Return the path of a field, for messages."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """Tell whether the field is there and not null."""
        return self.value.get(name) is not None

    def get(self, name: str) -> Reader:
        """Return a sub-object; an absent one reads as empty."""
        return Reader(self.value.get(name), self.at(name))

    def text(self, name: str, default: str = "") -> str:
        """Return a string without NUL bytes."""
        value = self.value.get(name)
        if value is None:
            return default
        return self._check_text(value, self.at(name))

    def flag(self, name: str) -> bool:
        """Return a boolean; absent is false."""
        value = self.value.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise InputError(self.at(name), value, "true or false")
        return value

    def number(self, name: str, default: int = 0, *, least: int = 0, most: int = UINT32_MAX) -> int:
        """Return a whole number within bounds."""
        value = self.value.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(self.at(name), value, f"a whole number from {least} to {most}")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of strings."""
        return [
            self._check_text(item, f"{self.at(name)}[{index}]")
            for index, item in enumerate(self._sequence(name))
        ]

    def numbers(self, name: str, *, most: int = UINT32_MAX) -> list[int]:
        """Return a list of whole numbers from 0."""
        items = self._sequence(name)
        for index, item in enumerate(items):
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= most:
                path = f"{self.at(name)}[{index}]"
                raise InputError(path, item, f"a whole number from 0 to {most}")
        return list(items)

    def objects(self, name: str) -> Iterator[Reader]:
        """Yield a reader for each object of a list."""
        for index, item in enumerate(self._sequence(name)):
            yield Reader(item, f"{self.at(name)}[{index}]")

    def mapping(self, name: str) -> dict[str, str]:
        """Return an object whose values are strings."""
        inner = self.get(name)
        return {
            self._check_text(key, inner.path): self._check_text(value, f"{inner.path}.{key}")
            for key, value in inner.value.items()
        }

    def choice(self, name: str, choices: Mapping[str, int], *, default: str = "") -> int:
        """Return what a name stands for."""
        value = self.text(name, default)
        if value not in choices:
            raise InputError(self.at(name), value, ", ".join(choices))
        return choices[value]

    def _sequence(self, name: str) -> Sequence[Any]:
        value = self.value.get(name)
        if value is None:
            return ()
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InputError(self.at(name), value, "a list")
        return value

    @staticmethod
    def _check_text(value: object, path: str) -> str:
        if not isinstance(value, str):
            raise InputError(path, value, "a string")
        if "\0" in value:
            raise InputError(path, value, "a string without NUL bytes")
        return value
