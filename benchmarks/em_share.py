"""What the EM takes of an epoch, refits and the search for features included, with and without a label model.

    python -m benchmarks.em_share [--annotators 10000] [--pairs 100000] [--step 1.7] [--write docs/label_model.md]

One label a pair; annotators lean to the response shown first, are the more often right the surer they are, and tire. A
step is what a trainer asks: posteriors of a batch, and its evidence taken in; refits come after some of them. The step
beside which it stands is the one that docs/speed.md measures on one CPU thread (6M parameters, 64 pairs).
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

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


def refit_steps(steps: int, every: int) -> list[int]:
    """Steps of an epoch after which the buffer is refitted."""
    return [step for step in range(8, steps + 1) if step & (step - 1) == 0 or step % every == 0]


def epoch(delta: Tensor, crowd: Crowd, annotators: int, enabled: bool) -> dict[str, Any]:
    """Processor seconds of an epoch: of its steps, of its refits and of the searches for features among them; from 100
    steps, refits to a tenth, a half and all of the margins (in between: a straight line), and one search."""
    settings = EMSettings(label_model=LabelModelInTraining(enabled=enabled))
    flat, steps = crowd.votes, len(delta) // BATCH

    def votes_of(block: slice | Tensor) -> Votes:
        return Votes(flat.annotator[block].unsqueeze(-1), flat.sign[block].unsqueeze(-1))

    em = build_estimator(settings, annotators, len(delta), votes_of, crowd_of=lambda: crowd)
    shares, seconds, search = [0.1, 0.5, 1.0], [], 0.0
    for share in shares:
        em.buffer.load(torch.where(torch.arange(len(delta)) % 10 < 10 * share, delta, torch.nan))
        if em.label_model is not None:
            began = time.process_time()
            em.refit()  # with a search, the first time
            search = search or time.process_time() - began
            em.label_model._chosen_at = len(delta)
        began = time.process_time()
        em.refit()
        seconds.append(time.process_time() - began)
    refits = refit_steps(steps, settings.buffer.refit_every)
    fits = sum(_between(shares, seconds, step / steps) for step in refits)
    searches = 0 if em.label_model is None else len({int(math.log(step / 8, 4)) for step in refits})
    valid, began = torch.ones(BATCH, dtype=torch.bool), time.process_time()
    for pair in (torch.arange(100 * BATCH) % len(delta)).split(BATCH):
        batch, margin = votes_of(pair), delta[pair]
        w = em.posterior(margin, batch, pair)
        add_evidence(em, pair, w, margin, batch, valid)
        em.exchange(lambda rows: rows)
        em.buffer.record(pair, margin, keep_first=True)
        em.rollback()
    plain = (time.process_time() - began) / 100 * steps
    names = [] if em.label_model is None else list(em.label_model.now.names[1:])
    return {
        "steps": steps, "plain": plain, "refits": len(refits), "fits": fits, "names": names,
        "searches": searches, "search": searches * max(0.0, search - seconds[0]),
    }  # fmt: skip


def _between(at: list[float], values: list[float], share: float) -> float:
    right = next((i for i, x in enumerate(at) if x >= share), len(at) - 1)
    left = max(0, right - 1)
    part = 0.0 if at[right] == at[left] else min(1.0, max(0.0, (share - at[left]) / (at[right] - at[left])))
    return values[left] + part * (values[right] - values[left])


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
            f"{1e3 * found['plain'] / found['steps']:.2f} ms",
            f"{found['refits']} in {found['fits']:.0f} s",
            f"{found['searches']} in {found['search']:.0f} s",
            f"{found['plain'] / whole:.2%}",
            f"{(found['plain'] + found['fits'] + found['search']) / whole:.2%}",
        ]
    heads = ["EM in a step", "refits", "searches", "share of a step", "share of the epoch"]
    text = table("features", heads, rows)
    print(text)
    if arguments.write:
        replace_block(arguments.write, "share of a step", text)


if __name__ == "__main__":
    main()
