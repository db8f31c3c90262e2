"""``nemo-rpo train``: from a YAML file to an aligned model and the reliability of every annotator."""

from __future__ import annotations

import argparse

from nemo_rpo.commands.on_ranks import add_arguments as add_arguments
from nemo_rpo.commands.on_ranks import run_on_ranks
from nemo_rpo.config.schema import RunConfig


def run(args: argparse.Namespace) -> int | None:
    """Trains on the ranks that torchrun started; starts them first where it has not."""
    return run_on_ranks(args, "train", _train)


def _train(cfg: RunConfig) -> int:
    from nemo_rpo.training.run import train

    return train(cfg)
