"""A YAML file and overrides as NeMo's ``hydra_runner`` composes them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_rpo.errors import ConfigError, missing_extra

# A key with a dot in it: one without is the choice of a config group.
_UNSIGNED = re.compile(r"(?!hydra[./])[A-Za-z_]\w*(\.\w+)+=", re.ASCII)


def compose(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What ``hydra_runner`` hands to a recipe's ``main`` for this file; interpolations are left as they stand.

    Config groups, packages and the override grammar are Hydra's. One thing is not: our files name only what differs
    from a default, so ``key=value`` is meant as ``++key=value`` and need not be in the file.

    Raises:
        ConfigError: the file or an override is not as Hydra wants it.
        MissingExtraError: a package that NeMo imports is not installed.
    """
    try:
        from nemo.core.config import hydra_runner
    except ImportError as exc:
        raise missing_extra(exc.name or "nemo_toolkit", "nemo") from exc
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    composed: list[DictConfig] = []

    def recipe(cfg: DictConfig) -> None:
        composed.append(cfg)

    said = [f"++{text}" if _UNSIGNED.match(text) else text for text in overrides]
    command = ["--config-path", str(path.parent.resolve()), "--config-name", path.name, "hydra.job.chdir=false", *said]
    try:
        with _command_line(command):
            hydra_runner(config_path=None, config_name=None)(recipe)()
    except (HydraException, OmegaConfBaseException) as exc:
        raise ConfigError(f"{path} under Hydra: {' '.join(str(exc).split())}") from exc
    return OmegaConf.to_container(composed[0], resolve=False)


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Hydra reads the process's arguments, and ends the process on an error unless it is told to raise it."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [argv[0], *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
