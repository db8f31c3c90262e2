"""``nemo-rpo train --dry-run``: what a run would be, from its settings, its model's shape and its files."""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import torch

from nemo_rpo.commands import on_ranks
from nemo_rpo.config.architecture import GPTArchitecture, architecture_from_yaml
from nemo_rpo.config.arithmetic.rate import RateSchedule
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.counting import counted
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.formats import read_rows
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.vote_ledger import read_votes
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.planning.card_counts import sizes
from nemo_rpo.planning.hardware import MEMORY, hardware_named
from nemo_rpo.planning.memory import peak_memory
from nemo_rpo.training import data_of_run, setup
from nemo_rpo.training.logs.run_log import startup_text
from nemo_rpo.training.schedule import Schedule

_SAMPLE = 256  # rows that the tokenizer looks at
_ASSUMED = "H100"  # where there is no GPU to ask


def print_dry_run(args: argparse.Namespace) -> None:
    """Prints layout of ranks, memory, steps and hours, and trains nothing.

    Raises:
        RPOError: what would stop the run before its first step, as far as its settings and its files show it.
    """
    cfg = on_ranks.read_config(args)
    world_size = on_ranks.ranks_of(args) * cfg.trainer.num_nodes
    on_ranks.check_run(cfg, world_size)
    setup.check_start(cfg)
    read, start = data_of_run.cache_spec(cfg, "train"), setup.starting_point(cfg)
    tokenizer = PreferenceTokenizer.load(read.tokenizer)
    architecture = (
        setup.stored_architecture(start, cfg) if start else architecture_from_yaml(cfg.model, tokenizer.vocab_size)
    )
    bad: list[DataError] = []
    votes = read_votes(read.paths, read.keys, bad.append)
    pairs = _trained_on(votes, read)
    if not pairs:
        first = f": {bad[0]}" if bad else ""
        raise DataError(f"{read.paths[0]} has no label that can be trained on{first}")
    if pairs < cfg.model.global_batch_size:
        raise ConfigError(
            f"{pairs:,} pairs are no global batch of {cfg.model.global_batch_size:,}: lower model.global_batch_size"
        )
    schedule = Schedule.of(cfg.trainer.dpo, pairs // cfg.model.global_batch_size)
    length = _mean_length(read, tokenizer)
    facts = {
        "train data": f"{counted(pairs, 'pair')}, {counted(len(votes), 'label')} of "
        + counted(len(votes.annotators), "annotator"),
        **({"unreadable rows": f"{len(bad):,}, the first {bad[0]}"} if bad else {}),
        "steps": f"{schedule.total_steps:,} in all, {schedule.steps_per_epoch:,} an epoch",
        "tokens a text": f"{length:,.0f} on average, prompt and response (the first {_SAMPLE} rows)",
        **_cost(args, cfg, architecture, world_size, length, schedule.total_steps),
    }
    print(startup_text(cfg, facts, world_size))
    sched = cfg.model.optim.sched
    for text in RateSchedule.of(sched, schedule.total_steps).warnings(sched):
        print(f"warning: {text}")
    print("nothing was trained: leave out --dry-run to start")


def _trained_on(votes: VoteTable, read: CacheSpec) -> int:
    """Pairs that a step can have: with a label that says something, which a tie does to few losses."""
    says = (votes.sign != 0) | read.keep_ties
    return len(np.unique(votes.pair[says])) if read.group_votes else int(says.sum())


def _mean_length(read: CacheSpec, tokenizer: PreferenceTokenizer) -> float:
    lengths = []
    for row in itertools.islice(read_rows(read.paths, read.keys, lambda bad: None), _SAMPLE):
        for response in row.responses:
            parts = tokenizer.render(row.prompt, response, row.given)
            lengths.append(min(sum(map(len, parts)), read.seq_length))
    if not lengths:
        raise DataError(f"{read.paths[0]} has no row that can be read: see nemo-rpo validate {read.paths[0]}")
    return sum(lengths) / len(lengths)


def _cost(
    args: argparse.Namespace, cfg: RunConfig, architecture: GPTArchitecture, ranks: int, length: float, steps: int
) -> dict[str, str]:
    memory = peak_memory(cfg, architecture, ranks).total / 1e9
    if cfg.trainer.accelerator == "cpu":
        return {
            "memory": f"about {memory:.1f} GB a rank, by formula",
            "hours": "not estimated on a CPU: the first steps of the run say how long it takes",
        }
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    kind = next((kind for kind in MEMORY if kind in name), None)
    hardware = hardware_named(kind or _ASSUMED, args.utilisation)
    [size] = sizes(cfg, architecture, hardware, [ranks], length)
    where = f"on {hardware.name} at {hardware.utilisation:.0%} of its peak"
    where += "" if kind else " (assumed: this machine has no such GPU)"
    if size.step_seconds is None:
        return {"memory": f"it does not fit: {size.why_not}"}
    hours = size.step_seconds * steps / 3600
    return {
        "memory": f"about {memory:.1f} GB of a GPU, by formula",
        "hours": f"about {hours:.2f}, {size.step_seconds:.1f} s a step, by formula, {where}",
    }
