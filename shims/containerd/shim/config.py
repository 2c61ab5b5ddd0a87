"""What an operator and a container may decide about the microVM: one table, four sources.

Later sources win: built-in defaults, ``/etc/void-shims/config.toml``, the runtime's options
(``runtimeoptions.v1.Options``: a TOML text or the path of one; containerd makes it from the
``options`` of a runtime entry, ``ctr`` from ``--runtime-config-path``), annotations
``dev.void-box.vm.NAME`` of the container. Annotations come from whoever may start containers, so
settings that name host paths or relax isolation between tenants are not open to them, and
``template`` may be made stricter only.

A name that is not in the table is refused, and so is a value out of range: a typing error in a
size must not silently become the default.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shims.core.errors import Described, InputError, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ANNOTATION_PREFIX", "SETTINGS", "SYSTEM_CONFIG", "Setting", "Settings", "load_settings"]

ANNOTATION_PREFIX = "dev.void-box.vm."
SYSTEM_CONFIG = "/etc/void-shims/config.toml"
_LONGEST_CONFIG = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every decision about one microVM and the shim that watches it."""

    vcpus: int = 1
    """Virtual CPUs."""
    memory_mib: int | None = None
    """Memory of the VM; None: from the container's limit, else 512."""
    machine: str = "auto"
    """``microvm``, ``q35``, or ``auto``: microvm unless a mount needs PCI."""
    accelerator: str = "auto"
    """``kvm``, ``tcg``, or ``auto``: KVM where it works."""
    template: str = "shared"
    """Who may share a template: ``shared``, ``per-namespace``, or ``off`` (always boot)."""
    trust_domain: str = ""
    """Only VMs of the same domain share a template, whatever ``template`` says besides."""
    scratch_mib: int = 10 * 1024
    """Size limit of the writable layer. The disk is sparse: only what is written takes space."""
    guest_image: str = ""
    """Directory of a guest image that ``void-guest build`` made; empty: the newest one."""
    boot_timeout: float = 90.0
    """Seconds from the start of QEMU to the guest's hello."""
    guest_timeout: float = 30.0
    """Seconds that one request to the guest may take; after two without an answer it is dead."""
    kill_timeout: float = 10.0
    """Seconds that a SIGKILL may take in the guest before the whole VM is killed."""
    drain_timeout: float = 5.0
    """Seconds that an exit waits for output; the VM waits longer for a reader that is slow."""
    create_timeout: float = 60.0
    """Seconds that a shim waits for its first container before it gives up."""


@dataclass(frozen=True)
class Setting:
    """One row of the table: the name in files and annotations, and how its value is read."""

    name: str
    field: str
    parse: Callable[[str, object], Any]
    annotation: bool
    help: str


def _whole(low: int, high: int) -> Callable[[str, object], int]:
    def parse(field: str, value: object) -> int:
        text = str(value).strip() if isinstance(value, str | int) else ""
        if isinstance(value, bool) or not text.isdecimal() or not low <= int(text) <= high:
            raise InputError(field, value, f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _seconds(low: float, high: float) -> Callable[[str, object], float]:
    def parse(field: str, value: object) -> float:
        try:
            number = float(value) if isinstance(value, str | int | float) else -1.0
        except ValueError:
            number = -1.0
        # Written so that NaN, for which every comparison is false, is refused too.
        if isinstance(value, bool) or not low <= number <= high:
            raise InputError(field, value, f"seconds from {low:g} to {high:g}")
        return number

    return parse


def _one_of(*choices: str) -> Callable[[str, object], str]:
    def parse(field: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise InputError(field, value, ", ".join(choices))
        return value

    return parse


def _size_mib(low: int, high: int) -> Callable[[str, object], int]:
    """Read MiB as a bare number, or with a unit: ``512``, ``512Mi``, ``2G``, ``2GiB``."""
    units = {"": 1, "m": 1, "mi": 1, "mib": 1, "g": 1024, "gi": 1024, "gib": 1024}

    def parse(field: str, value: object) -> int:
        text = str(value).strip() if isinstance(value, str | int) else ""
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        unit = units.get(text[len(digits) :].lower())
        number = int(digits) * unit if unit and digits.strip().isdecimal() else -1
        if isinstance(value, bool) or not low <= number <= high:
            raise InputError(field, value, f"{low} to {high} MiB, as in 512, 512Mi or 2Gi")
        return number

    return parse


def _text(field: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > 255 or not value.isprintable():
        raise InputError(field, value, "a printable text of at most 255 characters")
    return value


def _absolute_path(field: str, value: object) -> str:
    text = _text(field, value)
    if text and not os.path.isabs(text):
        raise InputError(field, value, "an absolute path")
    return text


_TEMPLATE_USES = ("shared", "per-namespace", "off")
"""From the laxest to the strictest."""

SETTINGS: tuple[Setting, ...] = (
    Setting("vcpus", "vcpus", _whole(1, 64), True, "virtual CPUs"),
    Setting("memory", "memory_mib", _size_mib(128, 1 << 20), True, "memory of the VM"),
    Setting("machine", "machine", _one_of("auto", "microvm", "q35"), True, "QEMU machine type"),
    Setting("accelerator", "accelerator", _one_of("auto", "kvm", "tcg"), True, "CPU emulation"),
    Setting("template", "template", _one_of(*_TEMPLATE_USES), True, "who may share one"),
    Setting("trust-domain", "trust_domain", _text, False, "VMs of one domain share a template"),
    Setting("scratch", "scratch_mib", _size_mib(16, 1 << 24), True, "limit of the writable layer"),
    Setting("guest-image", "guest_image", _absolute_path, False, "directory of the guest image"),
    Setting("boot-timeout", "boot_timeout", _seconds(1, 3600), True, "seconds for the boot"),
    Setting("guest-timeout", "guest_timeout", _seconds(1, 600), False, "seconds for one request"),
    Setting("kill-timeout", "kill_timeout", _seconds(0.1, 600), False, "seconds for a SIGKILL"),
    Setting("drain-timeout", "drain_timeout", _seconds(0, 8), False, "seconds for late output"),
    Setting("create-timeout", "create_timeout", _seconds(1, 3600), False, "seconds to Create"),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}


def load_settings(
    annotations: Mapping[str, str],
    *,
    system_config: str = SYSTEM_CONFIG,
    config_path: str = "",
    config_body: str = "",
) -> Settings:
    """Return the settings that the four sources give together.

    ``config_path`` and ``config_body`` are those of the runtime's options. Raises ``InputError``
    with the name of the annotation, or the file and key, that is wrong; ``NotFound`` when
    ``config_path`` does not exist. A missing system configuration is no error.
    """
    chosen: dict[str, Any] = {}
    if text := _read_config(system_config, required=False):
        chosen |= _parse_config(system_config, text)
    if config_path and (text := _read_config(config_path, required=True)):
        chosen |= _parse_config(config_path, text)
    if config_body:
        chosen |= _parse_config("runtime options", config_body)
    for key, value in annotations.items():
        if key.startswith(ANNOTATION_PREFIX):
            setting = _find_for_annotation(key)
            before = chosen.get(setting.field, getattr(Settings, setting.field))
            chosen[setting.field] = _parse(setting, key, value)
            if setting.name == "template":
                _require_stricter(key, value, before)
    return dataclasses.replace(Settings(), **chosen)


def _parse(setting: Setting, field: str, value: object) -> Any:
    try:
        return setting.parse(field, value)
    except (ValueError, OverflowError) as error:  # Python reads numbers up to a length only
        raise InputError(field, Described("far too many digits"), setting.help) from error


def _require_stricter(key: str, value: str, before: str) -> None:
    allowed = _TEMPLATE_USES[_TEMPLATE_USES.index(before) :]
    if value not in allowed:
        raise InputError(key, value, f"{', '.join(allowed)}: this host's setting is {before}")


def _find_for_annotation(key: str) -> Setting:
    setting = _BY_NAME.get(key.removeprefix(ANNOTATION_PREFIX))
    if setting is None:
        names = ", ".join(setting.name for setting in SETTINGS if setting.annotation)
        raise InputError(key, "an unknown setting", f"{ANNOTATION_PREFIX}NAME with NAME of {names}")
    if not setting.annotation:
        raise InputError(key, "an annotation", f"{setting.name} in {SYSTEM_CONFIG} only")
    return setting


def _read_config(path: str, *, required: bool) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(_LONGEST_CONFIG + 1)
    except FileNotFoundError as error:
        if required:
            raise NotFound(f"{path}: no such configuration file") from error
        return ""
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL byte in the path
        raise InputError(path, str(error), "a readable TOML file") from error
    if len(text) > _LONGEST_CONFIG:
        raise InputError(path, "a file above 1 MiB", "a TOML file of settings")
    return text


def _parse_config(source: str, text: str) -> dict[str, Any]:
    import tomllib  # 5 ms that most starts do not need

    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number too long is no TOMLDecodeError
        raise InputError(source, str(error), "TOML") from error
    # The settings may stand at the top or in a table [vm], where other programs share the file.
    section = table.get("vm", table)
    if not isinstance(section, dict):
        raise InputError(f"{source}: vm", section, "a table")
    chosen = {}
    for key, value in section.items():
        setting = _BY_NAME.get(key.replace("_", "-"))
        if setting is None:
            names = ", ".join(setting.name for setting in SETTINGS)
            raise InputError(f"{source}: {key}", value, f"the settings {names}")
        chosen[setting.field] = _parse(setting, f"{source}: {key}", value)
    return chosen
