"""From YAML files and overrides to a :class:`RunConfig`, with every key accounted for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_rpo.config.merging.nemo_keys import MIRRORS, ONLY_WITH, VALUES
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.types import Mismatch, convert, hints_of
from nemo_rpo.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from nemo_rpo.config.merging.tree import SettingsTree


def print_on_first_rank(text: str) -> None:
    """Prints to stderr on global rank 0 (torchrun's ``RANK``) and nowhere else."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def load_config(
    config_name_or_path: str,
    overrides: Sequence[str] = (),
    config_path: str | Path | None = None,
    notify: Callable[[str], None] = print_on_first_rank,
    hydra: bool = False,
) -> RunConfig:
    """The configuration that a YAML file and ``key=value`` overrides describe, on top of the schema's defaults.

    Understood: ``${...}`` interpolation, relative too, with NeMo's resolvers ``multiply`` and ``int_div``; a
    ``defaults:`` list of YAML files beside this one; Hydra's ``+key=``, ``++key=`` and ``~key``. Keys of NeMo that mean
    nothing here are named in one call of ``notify``. With ``hydra``, NeMo's ``hydra_runner`` reads and merges the file
    and the overrides instead (:mod:`nemo_rpo.nemo_toolkit.hydra`).

    Raises:
        ConfigError: no such file, bad YAML, a key that is unknown (with the nearest known one), a value of another type
            or out of its range, or a setting of NeMo's that would change the training if it were ignored.
        MissingExtraError: OmegaConf is not installed.
    """
    try:
        from nemo_rpo.config.merging.sources import Source, find_config, parse_override, read_files
        from nemo_rpo.config.merging.tree import SettingsTree
    except ModuleNotFoundError as exc:
        raise missing_extra(exc.name or "omegaconf", "mcore") from exc

    ignored: list[str] = []
    tree = SettingsTree()
    path = find_config(config_name_or_path, config_path)
    if hydra:
        from nemo_rpo.nemo_toolkit.hydra import compose

        sources, overrides = [Source(f"in {path} and the overrides", compose(path, overrides))], ()
    else:
        sources = read_files(path, ignored)
    for source in sources:
        tree.set("", source.tree, source.where)
    for override in map(parse_override, overrides):
        if override.delete:
            tree.take_back(override.key, override.where)
        else:
            tree.set(override.key, override.value, override.where)
    cfg = _section(RunConfig, tree, "")
    _check_foreign(tree, cfg)
    ignored = [name for name in tree.foreign if name not in MIRRORS] + ignored
    if cfg.model.data.data_prefix.pop("test", None) is not None:
        ignored.append("model.data.data_prefix.test")
    if ignored:
        notify("settings of NeMo that mean nothing here: " + ", ".join(ignored))
    if cfg.model.sequence_parallel and cfg.model.tensor_model_parallel_size == 1:
        cfg.model.sequence_parallel = False
        notify("model.sequence_parallel is off: it needs model.tensor_model_parallel_size above 1")
    return cfg


def config_to_yaml(cfg: RunConfig) -> str:
    """Every setting as YAML; :func:`load_config` reads it back to an equal configuration."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(asdict(cfg)))


def _section(cls: type, tree: SettingsTree, prefix: str) -> Any:
    values = {}
    for name, hint in hints_of(cls).items():
        path = prefix + name
        values[name] = _section(hint, tree, f"{path}.") if is_dataclass(hint) else _setting(hint, tree, path)
    return cls(**values)


def _setting(hint: Any, tree: SettingsTree, path: str) -> Any:
    given = tree.get(path)
    try:
        return convert(hint, _ours(path, given))
    except Mismatch as exc:
        raise ConfigError(f"{path} must be {exc}; got {given!r}{tree.origin(path)}") from exc


def _ours(path: str, value: Any) -> Any:
    return VALUES.get(path, {}).get(value, value) if isinstance(value, str) else value


def _check_foreign(tree: SettingsTree, cfg: RunConfig) -> None:
    """Refuses what would train something else if ignored, and what says a thing differently in two places."""
    for path in tree.foreign.values():
        if path in ONLY_WITH:
            harmless, advice = ONLY_WITH[path]
            value = tree.get(path)
            if value not in harmless:
                what = f"{path}={value} is not supported, and ignoring it would change the training"
                raise ConfigError(f"{what}: {advice}{tree.origin(path)}")
        if path in MIRRORS:
            ours, value = MIRRORS[path], tree.get(path)
            setting = attrgetter(ours)(cfg)
            if value is not None and str(_ours(ours, value)) != str(setting):
                raise ConfigError(f"{path}={value} but {ours}={setting}: set {ours} alone{tree.origin(path)}")
