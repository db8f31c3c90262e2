"""Settings outside a run's: a mapping out of a YAML file as one of the dataclasses that say what it may hold."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from nemo_rpo.config.types import Mismatch, convert, hints_of
from nemo_rpo.errors import ConfigError, first_line, missing_extra

Settings = TypeVar("Settings")


def settings_of(cls: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """``values`` as a ``cls``; ``where`` is what they are called in messages, ``judges[2]`` say.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a missing one, or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping of settings; got {values!r}")
    hints = hints_of(cls)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, 1)
            advice = f"; did you mean '{near[0]}'?" if near else f"; it can have {', '.join(hints)}"
            raise ConfigError(f"{where} has no setting '{name}'{advice}")
    for of in fields(cls):
        if of.default is MISSING and of.default_factory is MISSING and values.get(of.name) is None:
            raise ConfigError(f"{where}.{of.name} must be set")
    found = {}
    for name, value in values.items():
        try:
            found[name] = convert(hints[name], value)
        except Mismatch as exc:
            raise ConfigError(f"{where}.{name} must be {exc}; got {value!r}") from exc
    return cls(**found)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: no such file, or it holds something else.
        MissingExtraError: PyYAML is not installed.
    """
    yaml = _yaml()
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read ({first_line(exc)})") from exc
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: {getattr(exc, 'problem', None) or first_line(exc)}") from exc
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of settings")
    return tree


def yaml_value(text: str, where: str) -> Any:
    """What a value on the command line stands for: ``3``, ``0.5``, ``null``, ``[a, b]``, or a text.

    Raises:
        ConfigError: it is no YAML. MissingExtraError: PyYAML is not installed.
    """
    yaml = _yaml()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigError(f"{where}: {text!r} is no YAML value ({first_line(exc)})") from exc


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as exc:
        raise missing_extra("pyyaml", "loop") from exc
    return yaml
