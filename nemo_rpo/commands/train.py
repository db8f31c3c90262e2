"""``nemo-rpo train``: from a YAML file to an aligned model and the reliability of every annotator."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings

from nemo_rpo.commands import on_ranks
from nemo_rpo.config.places import plain_folder, run_folder
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    on_ranks.add_arguments(parser)
    help = "then train with the plain loss at the same settings, in RUN-plain, and compare both on the held-out labels"
    parser.add_argument("--beside-plain", action="store_true", help=help)
    help = "say what the run would be (layout, memory, steps, hours for this file), and stop"
    parser.add_argument("--dry-run", action="store_true", help=help)
    help = "share of a GPU's peak rate that --dry-run assumes, where it gives hours"
    parser.add_argument("--utilisation", type=float, metavar="MFU", help=help)
    parser.description += (
        ". Ctrl-C or SIGTERM once: the run finishes its step, saves and stops, and says how to go on; twice: it ends "
        "at once. The exit status is 0 at the end of the run, 75 where it has saved and stopped before (start it again "
        "to go on), 2 for a mistake in the settings or the data, 130 or 143 where it was ended at once."
    )


def run(args: argparse.Namespace) -> int | None:
    """Trains on the ranks that torchrun started; starts them first where it has not."""
    if args.dry_run:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Megatron's, of packages that are missing: the layout says what is in use
            from nemo_rpo.commands.dry_run import print_dry_run

        print_dry_run(args)
        return None
    if not args.beside_plain or "RANK" in os.environ:
        return on_ranks.run_on_ranks(args, "train", _train)
    return _beside_plain(args)


def _train(cfg: RunConfig) -> int:
    from nemo_rpo.training.run import train

    return train(cfg)


def _beside_plain(args: argparse.Namespace) -> int:
    """Both runs, one after the other, each on ranks of its own; the comparison once both are at their end."""
    cfg = on_ranks.read_config(args)
    if not cfg.model.rpo.enabled:
        raise ConfigError("model.rpo.enabled=false is the plain loss already: leave --beside-plain out")
    if cfg.trainer.num_nodes > 1:
        raise ConfigError("--beside-plain starts two runs in turn on one machine: on several, start each by itself")
    ours = run_folder(cfg)
    plain = plain_folder(ours)
    for overrides in ([], ["model.rpo.enabled=false", f"exp_manager.explicit_log_dir={plain}"]):
        if overrides:
            print(f"\nnow the plain loss at the same settings, in {plain}", file=sys.stderr, flush=True)
        status = on_ranks.start(args, "train", [*args.overrides, *overrides])
        if status:
            return status
    from nemo_rpo.evaluation.beside_plain import as_text, compare_runs

    if cfg.model.data.data_prefix.get("validation") is None:
        command = f"nemo-rpo evaluate {shlex.quote(str(ours))} TEST.jsonl --beside {shlex.quote(str(plain))}"
        print(f"no held-out labels to compare the two by; on a file of yours: {command}")
    else:
        print(as_text(compare_runs(ours, plain), ours, plain))
    return 0
