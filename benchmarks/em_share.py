"""What the EM takes of an epoch, refits and the search for features included, with and without a label model.

    python -m benchmarks.em_share [--annotators 10000] [--pairs 100000] [--step 1.7] [--write docs/label_model.md]

One label a pair; annotators lean to the response shown first, are the more often right the surer they are, and tire.
All steps of an epoch are taken, but for the policy, whose margins are given: posteriors of a batch, its evidence taken
in, and every refit and search that is due. The step beside which it stands is the one that docs/speed.md measures on
one CPU thread (6M parameters, 64 pairs).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.markdown_table import replace_block, table
from nemo_rpo.em import EMSettings, Votes, add_evidence, build_estimator
from nemo_rpo.em.em_settings import LabelModelInTraining
from nemo_rpo.em.label_model import FlatVotes, VoteColumns
from nemo_rpo.em.label_model.of_run.training_crowd import Crowd

BATCH = 64
T = TypeVar("T")


def draw(annotators: int, pairs: int) -> tuple[Tensor, Crowd]:
    """Margins [N] and the crowd."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    annotator = torch.randint(annotators, (pairs,), generator=generator)
    shown, confidence, time_of_vote = torch.sign(normal(pairs)), normal(pairs), torch.arange(pairs).double()
    delta = 1.5 * normal(pairs)
    better = torch.where(torch.rand(pairs, generator=generator) < torch.sigmoid(delta), 1.0, -1.0)
    skill = (1.2 + 0.7 * normal(annotators))[annotator] + 0.7 * confidence - 1.2 * time_of_vote.float() / pairs
    leaning = (0.8 + 0.5 * normal(annotators))[annotator] * shown
    sign = torch.where(torch.rand(pairs, generator=generator) < torch.sigmoid(better * skill + leaning), 1, -1)
    votes = FlatVotes(torch.arange(pairs), annotator, sign, pairs)
    return delta, Crowd(votes, VoteColumns(shown_first=shown, confidence=confidence, time=time_of_vote))


class Watch:
    """Processor seconds of what goes through it, and how often."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def over(self, work: Callable[..., T]) -> Callable[..., T]:
        def watched(*arguments: Any) -> T:
            began = time.process_time()
            result = work(*arguments)
            self.seconds += time.process_time() - began
            self.calls += 1
            return result

        return watched


class Epoch(NamedTuple):
    """Processor seconds of an epoch: all of them, those of the refits, and those of the searches for features among
    them; how many of each; and the features in force at the end."""

    steps: int
    seconds: float
    refits: Watch
    searches: Watch
    names: list[str]


def epoch(delta: Tensor, crowd: Crowd, annotators: int, enabled: bool) -> Epoch:
    """An epoch of a run, but for the policy: its margins are given."""
    settings = EMSettings(label_model=LabelModelInTraining(enabled=enabled))
    flat, steps = crowd.votes, len(delta) // BATCH

    def votes_of(block: slice | Tensor) -> Votes:
        return Votes(flat.annotator[block].unsqueeze(-1), flat.sign[block].unsqueeze(-1))

    em = build_estimator(settings, annotators, len(delta), votes_of, crowd_of=lambda: crowd)
    refits, searches = Watch(), Watch()
    em.refit = refits.over(em.refit)
    if em.label_model is not None:
        em.label_model._choose = searches.over(em.label_model._choose)
    order = torch.randperm(len(delta), generator=torch.Generator().manual_seed(1))
    valid, seconds = torch.ones(BATCH, dtype=torch.bool), 0.0
    for pair in order.split(BATCH)[:steps]:
        batch, margin = votes_of(pair), delta[pair]
        began = time.process_time()
        w = em.posterior(margin, batch, pair)
        em.bounded(batch, pair)
        add_evidence(em, pair, w, margin, batch, valid)
        em.exchange(lambda rows: rows)
        em.commit()
        seconds += time.process_time() - began
    names = [] if em.label_model is None else list(em.label_model.now.names[1:])
    return Epoch(steps, seconds, refits, searches, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotators", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--step", type=float, default=1.7, help="seconds of a step without the EM")
    parser.add_argument("--write", help="a file with the block 'share of a step'")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    delta, crowd = draw(arguments.annotators, arguments.pairs)
    rows = {}
    for enabled in (False, True):
        found = epoch(delta, crowd, arguments.annotators, enabled)
        whole, refits, searches = found.steps * arguments.step, found.refits, found.searches
        plain = found.seconds - refits.seconds
        rows[", ".join(found.names) or "reliabilities alone"] = [
            f"{1e3 * plain / found.steps:.2f} ms",
            f"{refits.calls} in {refits.seconds - searches.seconds:.1f} s",
            f"{searches.calls} in {searches.seconds:.1f} s",
            f"{plain / whole:.2%}",
            f"{found.seconds / whole:.2%}",
        ]
        print(rows, flush=True)
    heads = ["EM in a step", "refits", "searches", "share of a step", "share of the epoch"]
    text = table("features", heads, rows)
    print(text)
    if arguments.write:
        replace_block(arguments.write, "share of a step", text)


if __name__ == "__main__":
    main()
