"""RE-DPO beside the losses that model noise beforehand or at one rate, on the same files, side by side in one process.

    python benchmarks/rivals.py [--seeds 5] [--first-seed 0] [--worlds sure bt] [--votes 1 3] [--write docs/losses.md]

Every seed has a preference world of its own (``nemo_rpo.world``: twelve annotators, from .95 to .15 reliable), its
votes one a pair or three a pair; every method starts from the same model, with the same order of pairs, the same
learning rate and two epochs. ``sure``: annotators are right or wrong about the better response of pairs that differ
by 2 or more. ``bt``: about a preference that is drawn from σ(difference), of pairs that differ by .5 or more.
rDPO and UDPO are told the true share of wrong labels (``bt``: of those that deny the preference). RGPO's consensus is
the one-coin EM's over the votes, before training. FA-DPO begins at a flip rate of .1, and fits its own after the
first epoch from the margins that each pair had when it was seen first; in these worlds flips depend on who labelled,
not on the texts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from many_policies import ManyAdams, ManyLlamas
from markdown_table import replace_block, table
from torch import Tensor
from transformers import AutoTokenizer

from nemo_rpo.em import EMSettings, PairStep, Votes, build_estimator
from nemo_rpo.em.fit.baselines import one_coin
from nemo_rpo.em.fit.flip_rates import fit_flip_rates
from nemo_rpo.losses import PairLogprobs, PreferenceLoss, build_loss
from nemo_rpo.losses.families.estimated_noise import flip_features
from nemo_rpo.world import Language, WorldConfig, draw_pairs, write_world
from nemo_rpo.world.language import stream
from nemo_rpo.world.simulated_annotators import AnnotatorConfig

BETA, LR, BATCH, EPOCHS, WARM_UP = 0.5, 4e-3, 64, 2, 10
# Votes a pair → title, and labels of each annotator.
VOTES = {1: ("one vote a pair", 400), 3: ("three votes a pair", 600)}
WORLDS = {"sure": 2.0, "bt": 0.5}  # name → least difference of qualities
METHODS = ("DPO", "rDPO, true ε", "UDPO, true ε", "Dr. DPO", "FA-DPO", "RGPO", "RE-DPO")


@dataclass(frozen=True)
class Task:
    """A world: token ids [n, T] of both responses, votes relative to ``chosen``, and clean pairs to judge by."""

    folder: Path
    chosen: Tensor
    rejected: Tensor
    votes: Votes
    fresh: tuple[Tensor, Tensor]
    wrong: float

    @classmethod
    def make(cls, folder: Path, seed: int, kind: str, labels: int, votes_a_pair: int) -> Task:
        """``labels`` of each of the twelve annotators."""
        annotators = AnnotatorConfig(labels=labels, labels_per_pair=votes_a_pair)
        config = WorldConfig(seed=seed, min_gap=WORLDS[kind], annotators=annotators)
        truth = write_world(folder, config)
        # The world's own pairs once more, for how much they differ.
        language = Language(config.language, seed)
        pairs = draw_pairs(language, annotators.pairs, config.min_gap, stream(seed, "train"))
        drawn = np.random.default_rng([seed, 1]).random(len(pairs)) < 1 / (1 + np.exp(-pairs.gap))
        preferred = drawn if kind == "bt" else np.ones(len(pairs), dtype=bool)
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        chosen, rejected, annotator, sign = [], [], [], []
        names = {name: k for k, name in enumerate(annotators.ids)}
        rows = map(json.loads, (folder / "train.jsonl").read_text().splitlines())
        for row, kept in zip(rows, preferred, strict=True):
            votes = row.get("votes") or [{"annotator": row["annotator"], "vote": "a"}]
            texts = [row.get("response_a") or row["chosen"], row.get("response_b") or row["rejected"]]
            cast = [(1 if vote["vote"] == "a" else -1) * (1 if kept else -1) for vote in votes]
            if sum(cast) < 0:  # as the engine has it: chosen is what most say
                texts, cast = texts[::-1], [-said for said in cast]
            chosen.append((row["prompt"], texts[0])), rejected.append((row["prompt"], texts[1]))
            annotator.append([names[vote["annotator"]] for vote in votes]), sign.append(cast)
        fresh = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
        return cls(
            folder,
            _ids(tokenizer, chosen),
            _ids(tokenizer, rejected),
            Votes(torch.tensor(annotator), torch.tensor(sign, dtype=torch.float32)),
            tuple(_ids(tokenizer, [(row["prompt"], row[side]) for row in fresh]) for side in ("chosen", "rejected")),
            1 - truth["label_accuracy"],
        )


def _ids(tokenizer: AutoTokenizer, texts: Sequence[tuple[str, str]]) -> Tensor:
    def encode(prompt: str, response: str) -> list[int]:
        said = tokenizer(response, add_special_tokens=False).input_ids
        return [*tokenizer(prompt).input_ids, *said, tokenizer.eos_token_id]

    return torch.tensor([encode(*text) for text in texts])


def losses(task: Task) -> dict[str, PreferenceLoss]:
    """Of each method; ε is the true share of wrong labels, below ½ as rDPO needs it."""
    flips = min(task.wrong, 0.49)
    return {
        "DPO": build_loss("dpo", beta=BETA),
        "rDPO, true ε": build_loss("rdpo", beta=BETA, label_smoothing=flips),
        "UDPO, true ε": build_loss("udpo", beta=BETA, a=flips / (1 - flips)),
        "Dr. DPO": build_loss("dr_dpo", beta=BETA),
        "FA-DPO": build_loss("fa_dpo", beta=BETA),
        "RGPO": build_loss("rgpo", beta=BETA),
        "RE-DPO": build_loss("dpo", beta=BETA),
    }


def train(task: Task, seed: int) -> dict[str, float]:
    """Accuracy of every method on the clean pairs."""
    policies, of = ManyLlamas(task.folder / "model", len(METHODS)), losses(task)
    pairs, total = len(task.chosen), EPOCHS * (len(task.chosen) // BATCH)
    with torch.no_grad():
        reference = [ManyLlamas(task.folder / "model", 1).log_probs(ids)[0] for ids in (task.chosen, task.rejected)]
    settings = EMSettings()
    em = build_estimator(settings, 12, pairs, lambda block: Votes(*(x[block] for x in task.votes[:2])))
    consensus = one_coin(task.votes, 12, settings).w.clamp(1e-6, 1 - 1e-6).logit().float()
    first = torch.full((pairs,), float("nan"))
    optimizer = ManyAdams(policies.weights, LR, WARM_UP, total)
    order = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for batch in torch.randperm(pairs, generator=order)[: total // EPOCHS * BATCH].view(-1, BATCH):
            logps = policies.log_probs(torch.cat((task.chosen[batch], task.rejected[batch])))
            objective = torch.zeros(())
            for r, name in enumerate(METHODS):
                x = _pairs(task, logps[r].chunk(2), [side[batch] for side in reference], consensus[batch], batch)
                votes = Votes(*(column[batch] for column in task.votes[:2]))
                if name == "RGPO":  # its labels are the consensus's
                    votes = Votes.single(votes.annotator[:, 0])
                step = PairStep(of[name], settings.objective_in_force, 1.0, 0.0, False)
                learns = name == "RE-DPO"
                everyone = torch.ones(BATCH, dtype=torch.bool)
                made = step(x, votes, everyone, em if learns else None, batch if learns else None)
                objective = objective + made.objective.sum() / made.statistic.sum()
                if name == "FA-DPO":
                    u = of[name].implicit_margin(x).detach()
                    first[batch] = torch.where(first[batch].isnan(), u, first[batch])
            optimizer.step(objective)
            em.exchange(lambda rows: rows), em.commit()
        of["FA-DPO"] = _fitted(task, first, reference)
    with torch.no_grad():
        start = [ManyLlamas(task.folder / "model", 1).log_probs(ids) for ids in task.fresh]
        now = [policies.log_probs(ids) for ids in task.fresh]
        right = ((now[0] - start[0]) > (now[1] - start[1])).float().mean(-1)
    return dict(zip(METHODS, right.tolist(), strict=True))


def _pairs(task: Task, logps: Sequence[Tensor], reference: Sequence[Tensor], c: Tensor, batch: Tensor) -> PairLogprobs:
    length = torch.full((len(batch),), task.chosen.shape[1] - 3)
    return PairLogprobs(*logps, *reference, length, length, pair_columns={"consensus": c})


def _fitted(task: Task, first: Tensor, reference: Sequence[Tensor]) -> PreferenceLoss:
    """FA-DPO with the flip rates that its first margins speak for, by the majority's label."""
    seen = (~first.isnan()).nonzero().squeeze(-1)
    x = _pairs(task, [side[seen] for side in reference], [side[seen] for side in reference], first[seen], seen)
    coefficients, _ = fit_flip_rates(first[seen], flip_features(x))
    names = ("intercept", "length", "perplexity")
    return build_loss("fa_dpo", beta=BETA, **dict(zip(names, coefficients.tolist(), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--votes", type=int, nargs="+", choices=VOTES, default=list(VOTES), help="votes a pair")
    parser.add_argument("--write", metavar="DOC", help="document whose block 'rivals' takes the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {name: [] for name in METHODS}
    heads = []
    for kind, votes_a_pair in itertools.product(args.worlds, args.votes):
        title, labels = VOTES[votes_a_pair]
        found: dict[str, list[float]] = {name: [] for name in METHODS}
        wrong = []
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                task = Task.make(Path(folder), seed, kind, labels, votes_a_pair)
                wrong.append(task.wrong)
                for name, value in train(task, seed).items():
                    found[name].append(value)
            print(kind, title, seed, {name: round(values[-1], 3) for name, values in found.items()}, flush=True)
        heads.append(f"{kind}, {title}, {statistics.mean(wrong):.0%} of the labels wrong")
        for name, values in found.items():
            spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
            rows[name].append(f"{statistics.mean(values):.3f} ± {2 * spread:.3f}")
    text = f"Accuracy on clean pairs, mean of {args.seeds} worlds ± two standard errors.\n\n{table('', heads, rows)}"
    print(f"\n{text}")
    if args.write:
        replace_block(args.write, "rivals", text)


if __name__ == "__main__":
    main()
