"""Settings: four sources, one table, nonsense refused by name."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from shims.containerd.shim.config import ANNOTATION_PREFIX, SETTINGS, Settings, load_settings
from shims.core.errors import InputError, NotFound

if TYPE_CHECKING:
    from pathlib import Path


def test_every_setting_is_in_the_table() -> None:
    assert {s.field for s in SETTINGS} == {field.name for field in dataclasses.fields(Settings)}


def test_later_sources_win(tmp_path: Path) -> None:
    system, options = tmp_path / "system.toml", tmp_path / "options.toml"
    system.write_text("vcpus = 2\nmemory = '1Gi'\ntemplate = 'off'\n")
    options.write_text("[vm]\nvcpus = 3\nmemory = 2048\n")
    settings = load_settings(
        {ANNOTATION_PREFIX + "vcpus": "4", "other": "x"},
        system_config=str(system),
        config_path=str(options),
        config_body="memory = '3Gi'",
    )
    assert (settings.vcpus, settings.memory_mib, settings.template) == (4, 3072, "off")


def test_no_source_gives_the_defaults(tmp_path: Path) -> None:
    assert load_settings({}, system_config=str(tmp_path / "none")) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vcpus", "0"), ("vcpus", "-1"), ("vcpus", "65"), ("vcpus", "two"), ("vcpus", ""),
        ("vcpus", "1.5"), ("memory", "1"), ("memory", "12Kb"), ("memory", "9999999Gi"),
        ("machine", "pc"), ("accelerator", "hvf"), ("template", "yes"), ("boot-timeout", "nan"),
        ("boot-timeout", "0"), ("unknown", "1"), ("guest-image", "/etc"), ("trust-domain", "mine"),
        ("drain-timeout", "1"),
    ],
)  # fmt: skip
def test_a_wrong_annotation_is_named(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_settings({ANNOTATION_PREFIX + name: value}, system_config=str(tmp_path / "none"))
    assert ANNOTATION_PREFIX + name in str(caught.value)


@pytest.mark.parametrize("text", ["vcpus = ", "vcpu = 1", "vm = 3", "vcpus = true", "memory = []"])
def test_a_wrong_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"config\.toml"):
        load_settings({}, system_config=str(path))
    with pytest.raises(InputError, match="runtime options"):
        load_settings({}, system_config=str(tmp_path / "none"), config_body=text)


def test_a_missing_options_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="gone"):
        load_settings({}, system_config=str(path := tmp_path / "x"), config_path=f"{path}/gone")


def test_names_may_have_underscores(tmp_path: Path) -> None:
    settings = load_settings({}, system_config=str(tmp_path / "x"), config_body="boot_timeout = 9")
    assert settings.boot_timeout == 9


@pytest.mark.parametrize(
    ("operator", "annotation", "allowed"),
    [
        ("shared", "per-namespace", True), ("shared", "off", True), ("per-namespace", "off", True),
        ("per-namespace", "per-namespace", True), ("per-namespace", "shared", False),
        ("off", "per-namespace", False), ("off", "shared", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("source", ["system", "options"])
def test_an_annotation_makes_the_template_stricter_only(
    operator: str, annotation: str, allowed: bool, source: str, tmp_path: Path
) -> None:
    text = f"template = '{operator}'"
    system = tmp_path / "system.toml"
    system.write_text(text if source == "system" else "")
    asked = {ANNOTATION_PREFIX + "template": annotation}
    body = text if source == "options" else ""
    if allowed:
        settings = load_settings(asked, system_config=str(system), config_body=body)
        assert settings.template == annotation
    else:
        with pytest.raises(InputError, match=f"{ANNOTATION_PREFIX}template.*{operator}"):
            load_settings(asked, system_config=str(system), config_body=body)
