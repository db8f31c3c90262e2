"""``nemo-rpo score``: the reference's log-probs of all data, once, for every run that trains on it."""

from __future__ import annotations

import argparse
from functools import partial

from nemo_rpo.commands import on_ranks
from nemo_rpo.config.schema import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    on_ranks.add_arguments(parser)
    parser.add_argument("--per-token", action="store_true", help="keep the log-prob of every response token too")


def run(args: argparse.Namespace) -> int | None:
    """Scores on the ranks that torchrun started; starts them first where it has not."""
    options = ["--per-token"] if args.per_token else []
    return on_ranks.run_on_ranks(args, "score", partial(_score, per_token=args.per_token), options)


def _score(cfg: RunConfig, per_token: bool) -> None:
    from nemo_rpo.training.reference.scoring import score

    score(cfg, per_token)
