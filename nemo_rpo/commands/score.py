"""``nemo-rpo score``: the reference's log-probs of all data, once, for every run that trains on it; or rewards."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from nemo_rpo.commands import on_ranks
from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.commands.row_arguments import add_row_format, row_format
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.files.read import as_paths
from nemo_rpo.data.files.write import sink_for
from nemo_rpo.errors import ConfigError
from nemo_rpo.launch import start_ranks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    on_ranks.add_arguments(parser)
    parser.add_argument("--per-token", action="store_true", help="keep the log-prob of every response token too")
    rewards = parser.add_argument_group("rewards")
    help = "a reward or preference model (a run of bt, gpm or pal, its checkpoint or export): what it says of responses"
    rewards.add_argument("--rewards", type=Path, metavar="CHECKPOINT", help=help)
    help = "files with the responses: in any layout, labelled or not, or rows with prompt and response"
    rewards.add_argument("--data", type=Path, nargs="+", metavar="FILE", default=[], help=help)
    help = "file to write, a row a response: .parquet, .jsonl, .jsonl.gz, .csv (scores alone)"
    rewards.add_argument("--out", type=Path, metavar="OUT", help=help)
    rewards.add_argument("--overwrite", action="store_true", help="let --out replace a file")
    add_row_format(rewards)


def run(args: argparse.Namespace) -> int | None:
    """Scores on the ranks that torchrun started; starts them first where it has not."""
    if args.rewards is not None:
        return _rewards(args)
    for name in ("data", "out"):
        if getattr(args, name):
            raise ConfigError(f"--{name} goes with --rewards: log-probs are of model.data.data_prefix")
    options = ["--per-token"] if args.per_token else []
    return on_ranks.run_on_ranks(args, "score", partial(_score, per_token=args.per_token), options)


def _score(cfg: RunConfig, per_token: bool) -> None:
    from nemo_rpo.training.reference.scoring import score

    score(cfg, per_token)


def _rewards(args: argparse.Namespace) -> int | None:
    from nemo_rpo.evaluation.checkpoint import target_of

    if not args.data or args.out is None:
        raise ConfigError("--rewards needs --data FILE and --out OUT")
    if args.per_token:
        raise ConfigError("--per-token is of log-probs: a reward is of a whole response")
    paths = as_paths(args.data, setting="--data", folders=True)
    check_outputs((args.out,), paths, args.overwrite)
    sink_for(args.out)
    target = target_of(args.rewards, overrides=args.overrides, needs_reference=False)
    target.cfg.model.data.data_prefix = {"train": str(paths[0])}
    if "RANK" not in os.environ:
        ranks = args.nproc_per_node or on_ranks.fewest_ranks(target.cfg)
        on_ranks.check_run(target.cfg, ranks)
        if ranks > 1:
            return start_ranks(ranks, "nemo_rpo.cli", ["score", *args.given])
    else:
        on_ranks.check_run(target.cfg, int(os.environ["WORLD_SIZE"]))
    from nemo_rpo.data.files.write import record_writer
    from nemo_rpo.data.texts import read_responses
    from nemo_rpo.evaluation.rewards import reward_rows

    records = reward_rows(target, list(read_responses(paths, row_format(args))))
    if os.environ.get("RANK", "0") == "0":
        with record_writer(args.out, args.overwrite) as write:
            for record in records:
                write(record)
        unscored = sum(record["tokens"] is None for record in records)
        left = f", {unscored:,} of them too long or empty, without a score" if unscored else ""
        print(f"{args.out}: {len(records):,} responses{left}")
    return None
