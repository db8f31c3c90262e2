"""The settings while they are merged: every key accounted for, its origin kept for messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_rpo.config.merging.nemo_keys import IGNORED, MIRRORS, NULL_IS_DEFAULT, ONLY_WITH, ignored_as
from nemo_rpo.config.merging.suggest import nearest_key
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.types import leaves
from nemo_rpo.errors import ConfigError, first_line

HINTS = dict(leaves(RunConfig))
_SECTIONS = {key.rsplit(".", depth)[0] for key in HINTS for depth in range(1, key.count(".") + 1)}
_FOREIGN = {*IGNORED, *ONLY_WITH, *MIRRORS}
_RESOLVERS = {"multiply": lambda x, y: x * y, "int_div": lambda x, y: x // y}  # NeMo's own


class SettingsTree:
    """Defaults, under files, under overrides. A key that is neither ours nor NeMo's is refused when it comes in.

    Interpolations are resolved when a setting is read, so that one in a key which is ignored here need not resolve.

    Attributes:
        foreign: NeMo's keys that were set, as named in the notice → the dotted path, in order of appearance.
    """

    def __init__(self) -> None:
        register_resolvers()
        self._defaults = OmegaConf.create(_without_tuples(asdict(RunConfig())))
        self._tree = self._defaults.copy()
        self._origin: dict[str, str] = {}
        self.foreign: dict[str, str] = {}

    def set(self, key: str, value: Any, where: str) -> None:
        """Puts ``value``, one setting or a section of them, at the dotted ``key`` (the root: "").

        ``where`` it comes from is named in errors: "in conf/x.yaml", or "override a.b=c".
        """
        unknown = []
        for path, setting in _settings(re.sub(r"\[(\w+)\]", r".\1", key), value):
            owner = _owner(path)
            if path in _SECTIONS:
                raise ConfigError(f"{path} is a section of settings; got {setting!r} ({where})")
            if owner is None and not self._note_foreign(path):
                unknown.append(path)
                continue
            if setting is None and path in NULL_IS_DEFAULT:
                setting = OmegaConf.select(self._defaults, path)
            try:
                OmegaConf.update(self._tree, path, setting, merge=self._both_mappings(path, setting), force_add=True)
            except (OmegaConfBaseException, IndexError) as exc:
                raise ConfigError(f"{path}: {first_line(exc)} ({where})") from exc
            self._origin[owner or path] = where
        if unknown:
            raise ConfigError(f"{'; '.join(map(_unknown_key, unknown))} ({where})")

    def take_back(self, key: str, where: str) -> None:
        """Hydra's ``~key``: what is below the dotted ``key`` has its default again."""
        settings = [path for path in HINTS if path == key or path.startswith(key + ".")]
        foreign = [name for name, path in self.foreign.items() if path == key or path.startswith(key + ".")]
        for path in settings:
            OmegaConf.update(self._tree, path, OmegaConf.select(self._defaults, path), merge=False)
        for name in foreign:
            del self.foreign[name]
        mapping, _, entry = key.rpartition(".")
        if not settings and get_origin(HINTS.get(mapping)) is dict:
            OmegaConf.select(self._tree, mapping).pop(entry, None)
        elif not settings and not foreign and not _is_foreign(key):
            raise ConfigError(f"{_unknown_key(key)} ({where})")

    def get(self, path: str) -> Any:
        """The plain value at the dotted ``path``, interpolations resolved."""
        try:
            value = OmegaConf.select(self._tree, path, throw_on_missing=True)
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except (OmegaConfBaseException, TypeError, ValueError, ZeroDivisionError) as exc:
            raise ConfigError(f"{path}: {first_line(exc)}{self.origin(path)}") from exc

    def origin(self, path: str) -> str:
        """ " (in conf/x.yaml)" for what was set, "" for a default."""
        where = self._origin.get(path)
        return f" ({where})" if where else ""

    def _both_mappings(self, path: str, value: Any) -> bool:
        held = OmegaConf.select(self._tree, path, throw_on_resolution_failure=False)
        return isinstance(value, dict) and OmegaConf.is_dict(held)

    def _note_foreign(self, path: str) -> bool:
        name = path if path in ONLY_WITH or path in MIRRORS else ignored_as(path)
        if name is not None:
            self.foreign[name] = path
        return name is not None


def register_resolvers() -> None:
    """Makes NeMo's resolvers known to OmegaConf; twice does no harm."""
    for name, resolver in _RESOLVERS.items():
        try:
            OmegaConf.register_resolver(name, resolver, replace=True)
        except TypeError:  # OmegaConf 2.3, where this is the name of an older method
            OmegaConf.register_new_resolver(name, resolver, replace=True)


def _settings(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of each setting in a section; empty sections hold none."""
    if isinstance(value, dict) and path not in HINTS:
        for name, below in value.items():
            yield from _settings(f"{path}.{name}" if path else str(name), below)
    elif value is not None or not (path in _SECTIONS or any(key.startswith(path + ".") for key in _FOREIGN)):
        yield path, value


def _owner(path: str) -> str | None:
    """The setting that the dotted ``path`` is, or is an item of."""
    if path in HINTS:
        return path
    prefixes = (path.rsplit(".", depth)[0] for depth in range(1, path.count(".") + 1))
    return next((key for key in prefixes if get_origin(HINTS.get(key)) in (dict, list, tuple)), None)


def _is_foreign(path: str) -> bool:
    return ignored_as(path) is not None or any(key == path or key.startswith(path + ".") for key in _FOREIGN)


def _unknown_key(path: str) -> str:
    near = nearest_key(path)
    return f"unknown key {path}" + (f", did you mean {near}?" if near else "")


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
