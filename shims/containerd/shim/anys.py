"""``google.protobuf.Any`` as containerd writes it, and its timestamps.

containerd names a packed message by its bare full name, and a JSON document by
``types.containerd.io/opencontainers/runtime-spec/1/KIND``. Some senders put a prefix such as
``type.googleapis.com/`` before a message's name; it is ignored. Source: typeurl, and
``core/runtime`` of containerd.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from google.protobuf import any_pb2, timestamp_pb2

from shims.core.errors import InputError

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["json_of", "message_name", "pack", "timestamp"]

_JSON_PREFIX = "types.containerd.io/opencontainers/runtime-spec/"
_NS = 1_000_000_000


def pack(message: Message) -> any_pb2.Any:
    """Return ``message`` in an Any named as containerd names it."""
    return any_pb2.Any(
        type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True)
    )


def message_name(packed: any_pb2.Any) -> str:
    """Return the full name of the packed message, without a prefix."""
    return packed.type_url.rpartition("/")[2]


def json_of(packed: any_pb2.Any, field: str, kind: str) -> dict[str, Any]:
    """Return the JSON object of an OCI type such as ``Process``.

    Raises ``InputError`` naming ``field`` when it is another kind, or no JSON object.
    """
    url = packed.type_url
    if url and not (url.startswith(_JSON_PREFIX) and url.rpartition("/")[2] == kind):
        raise InputError(field, url, f"an OCI {kind} as JSON")
    try:
        value = json.loads(packed.value)
    except ValueError as error:  # wrong JSON, and wrong UTF-8
        raise InputError(field, str(error), f"an OCI {kind} as JSON") from error
    if not isinstance(value, dict):
        raise InputError(field, value, f"an OCI {kind} as a JSON object")
    return value


def timestamp(at_ns: int) -> timestamp_pb2.Timestamp:
    """Return nanoseconds since 1970 as a protobuf timestamp."""
    return timestamp_pb2.Timestamp(seconds=at_ns // _NS, nanos=at_ns % _NS)
