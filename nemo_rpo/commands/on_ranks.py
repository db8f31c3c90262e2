"""What the subcommands that run the engine share: a YAML file, settings over it, and ranks to start."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial

from nemo_rpo import nemo_toolkit
from nemo_rpo.config.load import load_config
from nemo_rpo.config.ranks import check_run, fewest_ranks
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError
from nemo_rpo.launch import COMMAND, start_ranks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    parser.add_argument("--config-name", "-cn", default="gpt_rpo", help="a YAML file, with or without .yaml (gpt_rpo)")
    parser.add_argument("--config-path", "-cp", help="its folder (./conf, ., or the checkout's conf)")
    parser.add_argument(
        "--nproc-per-node",
        type=int,
        help="ranks to start on this machine, if torchrun has started none (trainer.devices, or the layout's fewest)",
    )
    parser.add_argument(
        "--rdzv-endpoint",
        metavar="HOST:PORT",
        help="of one node, the same on all: where the trainer.num_nodes launchers, one a node, find each other",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that override the file's, such as model.optim.lr=1e-6",
    )


def run_on_ranks(
    args: argparse.Namespace, command: str, body: Callable[[RunConfig], int | None], options: Sequence[str] = ()
) -> int | None:
    """Calls ``body`` on the ranks that torchrun started; starts them first where it has not.

    ``options`` are those of ``command`` beside the shared ones, for the ranks that are started. Returns the exit status
    of the ranks; on a rank, what ``body`` returned.
    """
    read = _reader(args, args.overrides)
    if "RANK" in os.environ:
        return _checked(read(), int(os.environ["WORLD_SIZE"]), body)
    # Read once before there are ranks, so that a mistake is answered at once; the ranks print the notices.
    cfg = read(notify=lambda text: None)
    if cfg.trainer.num_nodes * ranks_of(args) == 1:
        os.environ[COMMAND] = shlex.join(["nemo-rpo", command, *args.given])
        return _checked(read(), 1, body)
    return start(args, command, args.overrides, options)


def read_config(args: argparse.Namespace) -> RunConfig:
    """The settings that the shared arguments name, without a word on what means nothing here."""
    return _reader(args, args.overrides)(notify=lambda text: None)


def ranks_of(args: argparse.Namespace) -> int:
    """Ranks to start on this machine."""
    return args.nproc_per_node or fewest_ranks(read_config(args))


def start(args: argparse.Namespace, command: str, overrides: Sequence[str], options: Sequence[str] = ()) -> int:
    """Starts ranks for ``command`` with ``overrides`` over the settings, under torchrun even if it is one; returns the
    exit status.
    """
    os.environ[COMMAND] = shlex.join(["nemo-rpo", command, *args.given])
    cfg = _reader(args, overrides)(notify=lambda text: None)
    if cfg.trainer.num_nodes > 1 and args.rdzv_endpoint is None:
        raise ConfigError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}, but nemo-rpo {command} starts the ranks of one machine: run "
            "it on every node with the same --rdzv-endpoint HOST:PORT, or set trainer.num_nodes=1"
        )
    ranks = args.nproc_per_node or fewest_ranks(cfg)
    check_run(cfg, ranks * cfg.trainer.num_nodes)
    shared = ["--config-name", args.config_name]
    shared += ["--config-path", args.config_path] if args.config_path else []
    arguments = [command, *shared, *options, "--", *overrides]
    return start_ranks(ranks, "nemo_rpo.cli", arguments, cfg.trainer.num_nodes, args.rdzv_endpoint)


def _reader(args: argparse.Namespace, overrides: Sequence[str]) -> Callable[..., RunConfig]:
    hydra = nemo_toolkit.version() is not None
    return partial(load_config, args.config_name, overrides, args.config_path, hydra=hydra)


def _checked(cfg: RunConfig, world_size: int, body: Callable[[RunConfig], int | None]) -> int | None:
    check_run(cfg, world_size)
    return body(cfg)
