"""What the EM takes of an epoch, refits and the search for features included, with and without a label model.

    python -m benchmarks.em_share [--annotators 10000] [--pairs 100000] [--step 1.7] [--write docs/label_model.md]

One label a pair; annotators lean to the response shown first, are the more often right the surer they are, and tire.
Every step is what a trainer does: posteriors of a batch, its evidence, and the commit, which now and then refits. The
step beside which it stands is the one that docs/speed.md measures on one CPU thread (6M parameters, 64 pairs).
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from benchmarks.markdown_table import replace_block, table
from nemo_rpo.em import EMSettings, Votes, add_evidence, build_estimator
from nemo_rpo.em.em_settings import LabelModelInTraining
from nemo_rpo.em.label_model import FlatVotes, VoteColumns
from nemo_rpo.em.label_model.training_crowd import Crowd

BATCH = 64


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


def epoch(delta: Tensor, crowd: Crowd, annotators: int, enabled: bool) -> dict[str, float]:
    """Processor seconds of an epoch's steps, and of those that refit; features in force at its end."""
    settings = EMSettings(label_model=LabelModelInTraining(enabled=enabled))
    flat = crowd.votes

    def votes_of(block: slice | Tensor) -> Votes:
        return Votes(flat.annotator[block].unsqueeze(-1), flat.sign[block].unsqueeze(-1))

    em = build_estimator(settings, annotators, len(delta), votes_of, crowd_of=lambda: crowd)
    order = torch.randperm(len(delta), generator=torch.Generator().manual_seed(1)).split(BATCH)
    plain, refits, valid = 0.0, [], torch.ones(BATCH, dtype=torch.bool)
    for pair in order:
        batch, before, began = votes_of(pair), em.estimate, time.process_time()
        margin = delta[pair]
        w = em.posterior(margin, batch, pair)
        add_evidence(em, pair, w, margin, batch, valid[: len(pair)])
        em.exchange(lambda rows: rows)
        em.commit()
        seconds = time.process_time() - began
        if em.estimate is before:
            plain += seconds
        else:
            refits.append(seconds)
    names = [] if em.label_model is None else list(em.label_model.now.names[1:])
    return {"steps": len(order), "plain": plain, "refits": len(refits), "fits": sum(refits), "names": names}


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
        whole = found["steps"] * arguments.step
        rows[", ".join(found["names"]) or "reliabilities alone"] = [
            f"{found['steps']:,}",
            f"{1e3 * found['plain'] / found['steps']:.2f} ms",
            f"{found['refits']}",
            f"{found['fits']:.1f} s",
            f"{found['plain'] / whole:.2%}",
            f"{(found['plain'] + found['fits']) / whole:.2%}",
        ]
    heads = ["steps", "EM in a step", "refits", "all refits", "share without them", "share with them"]
    text = table("features", heads, rows)
    print(text)
    if arguments.write:
        replace_block(arguments.write, "share of a step", text)


if __name__ == "__main__":
    main()
