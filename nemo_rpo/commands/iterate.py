"""``nemo-rpo iterate``: rounds of samples, verdicts and training."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from nemo_rpo.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    add = parser.add_argument
    add("config", type=Path, metavar="YAML", help="the loop's settings: one block, online (docs/loop.md)")
    help = "settings over the file's: rounds=5, train.recipe=inpo, stop.kl_to_start=10"
    add("overrides", nargs="*", metavar="key=value", help=help)
    parser.description += (
        ". Each stage's file appears when the stage is done: after a kill, a dead server or a stop the same command "
        "does what is missing and nothing else. The exit status is 0 at the end of the loop, 2 where a round must not "
        "be trained on or something is missing, 75 where a fit has saved and stopped."
    )


def run(args: argparse.Namespace) -> int:
    """Runs the rounds that are not done yet."""
    from nemo_rpo.rounds.loop import iterate
    from nemo_rpo.rounds.rounds_settings import read_plan

    logging.getLogger("httpx2").setLevel(logging.WARNING)
    return iterate(read_plan(args.config, dict(map(_override, args.overrides))))


def _override(text: str) -> tuple[str, object]:
    from nemo_rpo.config.from_mapping import yaml_value

    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"'{text}' is no key=value")
    return key, yaml_value(value, key)
