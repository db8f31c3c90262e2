"""Where a run's files lie."""

from __future__ import annotations

from pathlib import Path

from nemo_rpo.config.schema import RunConfig

_PLAIN = "-plain"  # the folder of the run with the plain loss is its sibling's with this behind it


def run_folder(cfg: RunConfig) -> Path:
    """The folder of the run: logs, checkpoints, results."""
    manager = cfg.exp_manager
    if manager.explicit_log_dir:
        return Path(manager.explicit_log_dir)
    return Path(manager.exp_dir, manager.name, manager.version or "")


def plain_folder(folder: Path) -> Path:
    """Of the run with the plain loss that ``nemo-rpo train --beside-plain`` makes beside the one in ``folder``.

    >>> plain_folder(Path("results/ours"))
    PosixPath('results/ours-plain')
    """
    return folder.with_name(folder.name + _PLAIN)
