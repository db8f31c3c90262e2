"""The sets of pairs that ``model.data.data_prefix`` names: ``train``, and one or several to validate on."""

from __future__ import annotations

import re

from nemo_rpo.config.schema import DataConfig
from nemo_rpo.errors import ConfigError

VALIDATION = "validation"
_NAME = re.compile(r"\w[\w-]*")  # it becomes part of file names, of metrics and of dotted keys


def split_files(data: DataConfig) -> dict[str, list[str]]:
    """The files of each split by its name: ``train``, then ``validation``, or ``validation/NAME`` of each named set.

    >>> validation = {"chat": ["a.jsonl"], "code": "b.jsonl"}
    >>> split_files(DataConfig(data_prefix={"train": "t.jsonl", "validation": validation}))
    {'train': ['t.jsonl'], 'validation/chat': ['a.jsonl'], 'validation/code': ['b.jsonl']}
    """
    validation = data.data_prefix.get(VALIDATION)
    named = {VALIDATION: validation} if validation else {}
    if isinstance(validation, dict):
        named = {f"{VALIDATION}/{name}": files for name, files in validation.items()}
    found = {"train": data.data_prefix["train"], **named}
    return {split: [files] if isinstance(files, str) else list(files) for split, files in found.items()}


def is_validation(split: str) -> bool:
    """Whether ``split`` is the plain validation set or a named one."""
    return split == VALIDATION or split.startswith(f"{VALIDATION}/")


def metrics_split(split: str) -> str:
    """What a validation split is called in logs: ``val``, or ``val/NAME``."""
    return f"val{split.removeprefix(VALIDATION)}"


def check_splits(data: DataConfig) -> None:
    """Raises :class:`ConfigError` for a ``data_prefix`` without training pairs, or of another form than is read."""
    for split, files in data.data_prefix.items():
        name = f"model.data.data_prefix.{split}"
        if split not in ("train", VALIDATION):
            raise ConfigError(f"unknown key {name}: there are train and validation")
        if split == VALIDATION and isinstance(files, dict):
            _check_named(name, files)
        elif not _are_files(files):
            sets = ", or a mapping of names to them" if split == VALIDATION else ""
            raise ConfigError(f"{name} must be a file or a list of files{sets}; got {files!r}")
    if not data.data_prefix.get("train"):
        raise ConfigError("model.data.data_prefix.train is not set: give the file of training pairs")


def _check_named(key: str, sets: dict[str, object]) -> None:
    for name, files in sets.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"{key}: a set's name is made of letters, digits, '_' and '-'; got {name!r}")
        if not files or not _are_files(files):
            raise ConfigError(f"{key}.{name} must be a file or a list of files; got {files!r}")


def _are_files(files: object) -> bool:
    return isinstance(files, str) or (isinstance(files, list) and all(isinstance(file, str) for file in files))
