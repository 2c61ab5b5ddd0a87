"""What is known of a container before containerd asks for it: the VM that its bundle wants.

The daemon starts that VM while it still imports what serves requests, so this module imports
little.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shims.containerd.shim import anys
from shims.containerd.shim.config import load_settings
from shims.containerd.shim.shapes import require_shape, require_texts
from shims.containerd.shim.sizing import host_memory_mib, size_vm
from shims.containerd.shim.volumes import Way, classify_mounts, root_is_directory
from shims.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf import any_pb2

    from shims.containerd.shim.config import Settings
    from shims.containerd.shim.supplies import Supplies
    from shims.microvm.config import MachineConfig

__all__ = [
    "GroupId",
    "early_config",
    "machine_config",
    "read_settings",
    "read_spec",
    "refuse_host_network",
]

_LONGEST_SPEC = 16 << 20


@dataclass(frozen=True)
class GroupId:
    """Who we are to containerd."""

    namespace: str
    name: str
    """The sandbox's id, or the only container's."""


def read_spec(bundle: str) -> dict[str, Any]:
    """Return the bundle's configuration: what the shim reads of it is of the right kind.

    Raises ``InputError`` naming the file, or the field that is not.
    """
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as stream:
            raw = stream.read(_LONGEST_SPEC + 1)
        if len(raw) > _LONGEST_SPEC:
            raise InputError(path, "a file above 16 MiB", "an OCI configuration")
        spec = json.loads(raw.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, str(error), "an OCI configuration") from error
    if not isinstance(spec, dict):
        raise InputError(path, spec, "an OCI configuration")
    require_shape(spec)
    if b"\\u" in raw:  # nothing else can bring what is looked for
        require_texts(spec)
    return spec


def refuse_host_network(spec: Mapping[str, Any]) -> None:
    """Refuse a configuration that asks for the host's network.

    It does so by having no network namespace (runtime-spec, config-linux.md), as ``ctr run
    --net-host`` and a pod with hostNetwork do. Of pid, ipc and uts the VM's own will do, and
    ``review`` of the plan says so; whoever asks for the host's network would get loopback. Only a
    bare configuration, which keeps nothing apart but mounts, asks for nothing: the VM's network is
    what it gets. A pod's members share what its sandbox has, which was looked at when that came.
    """
    kind = (spec.get("annotations") or {}).get("io.kubernetes.cri.container-type")
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    present = {one.get("type") for one in namespaces if isinstance(one, dict)}
    chosen = kind == "sandbox" or present >= {"pid", "ipc"}
    if chosen and kind != "container" and "network" not in present:
        raise InputError(
            "linux.namespaces",
            "no network namespace, which means the network of the host",
            "one of type network: a VM cannot be in a namespace of the host",
            hint="leave out --net-host or hostNetwork",
        )


def read_settings(spec: Mapping[str, Any], options: any_pb2.Any | None) -> Settings:
    """Return the settings for a container from its annotations and the runtime's options."""
    path, body = "", ""
    if options is not None and anys.message_name(options) == "runtimeoptions.v1.Options":
        from google.protobuf.message import DecodeError

        from protos.gen.runtimeoptions.v1 import options_pb2

        try:
            decoded = options_pb2.Options.FromString(options.value)
            path, body = decoded.config_path, decoded.config_body.decode()
        except (DecodeError, UnicodeDecodeError) as error:
            raise InputError("options", str(error), "runtimeoptions.v1.Options") from error
    return load_settings(spec.get("annotations") or {}, config_path=path, config_body=body)


def early_config(
    identity: GroupId, supplies: Supplies, bundle: str, options: any_pb2.Any
) -> MachineConfig:
    """Return the configuration of the VM that the bundle's container will most likely want.

    What only Create knows (its mounts) may prove it wrong; the VM is replaced then.
    """
    spec = read_spec(bundle)
    refuse_host_network(spec)
    settings = read_settings(spec, options)
    volumes = classify_mounts(spec, bundle)
    shares = root_is_directory(spec, bundle) or any(v.way is Way.SHARE for v in volumes)
    return machine_config(identity, supplies, spec, settings, shares=shares)


def machine_config(
    identity: GroupId,
    supplies: Supplies,
    spec: Mapping[str, Any],
    settings: Settings,
    *,
    shares: bool,
) -> MachineConfig:
    """Return what to start for a group whose first container is ``spec``."""
    size = size_vm(settings, spec, host_memory_mib())
    return supplies.machine_config(
        identity.name, identity.namespace, settings, size, spec, shares=shares
    )
