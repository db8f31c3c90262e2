"""What the label model says of simulated and of public crowds, beside majority, today's EM, Dawid-Skene, GLAD and MACE.

    python benchmarks/label_model.py [--seeds 20] [--first-seed 0] [--data FOLDER] [--only real position] [--write FILE]

Shares of truths found, ± 1.96 standard errors (over seeds, or over gold items). *One-coin* is the EM of this package
without a policy, *two-sided* the member with a slot, *label model* what evidence chose, *reported* what ``fit.w``
holds: the label model, or the majority where shared errors may outweigh the truth. FOLDER holds the public data sets.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from crowd_gold import SETS, accuracy, read_crowd
from markdown_table import replace_block, table
from torch import Tensor

from nemo_rpo.em import EMSettings, Votes
from nemo_rpo.em.fit.baselines import crowd_kit_frame, dawid_skene, majority, one_coin
from nemo_rpo.em.label_model import LabelModelFit, LabelModelSettings, VoteFeatures, fit_label_model
from nemo_rpo.em.label_model.choose import Fitter, columns_of_pairs, order_shown
from nemo_rpo.em.label_model.coded_votes import vote_table
from nemo_rpo.em.label_model.member import PairPrior
from nemo_rpo.errors import MissingExtraError

ESTIMATES = ("majority", "one-coin", "two-sided", "Dawid-Skene", "GLAD", "MACE", "label model", "reported")
CORRELATIONS = (0.0, 0.1, 0.3, 0.5, 0.8)
# Votes up to which the baselines that take minutes (GLAD, MACE) run.
_SLOW_VOTES = 10_000


class World(NamedTuple):
    """A crowd with its truth: ``gold`` [P] is 1, 0, or -1 where unknown; ``eta`` [K], or None where unknown.

    ``length`` [P] is a feature that votes may lean to; the first ``anchors`` pairs are fitted with their gold label,
    and judge nothing here.
    """

    votes: Votes
    annotators: int
    gold: Tensor
    slot: Tensor | None = None
    eta: Tensor | None = None
    length: Tensor | None = None
    anchors: int = 0


def draw(
    seed: int,
    annotators: int = 20,
    pairs: int = 600,
    votes: int = 7,
    population: tuple[float, float] = (1.5, 0.6),
    follows: float = 0.0,
    followers: float = 1.0,
    family: int = 0,
    correlation: float = 0.0,
    weakest_first: bool = False,
) -> World:
    """Skills N(``population``) in logits; of each pair ``votes`` annotators vote.

    The first ``followers`` of the annotators say what was shown first with probability ``follows``, whatever the truth;
    the order is random, one for all annotators of a pair. Errors of the first ``family`` annotators share a cause: with
    probability √ρ a vote's error is decided by the pair's common draw, so that they correlate by ρ = ``correlation``.
    """
    rng = np.random.default_rng(seed)
    mean, spread = population
    eta = 1 / (1 + np.exp(-(mean + spread * rng.normal(size=annotators))))
    if weakest_first:
        eta = np.sort(eta)
    annotator = np.argsort(rng.random((pairs, annotators)), 1)[:, :votes]
    truth = np.where(rng.random((pairs, 1)) < 0.5, 1, -1)
    draws, common = rng.random(annotator.shape), rng.random((pairs, 1))
    shared = (annotator < family) & (rng.random(annotator.shape) < np.sqrt(correlation))
    own = np.where(np.where(shared, common, draws) < eta[annotator], truth, -truth)
    slot = np.where(rng.random((pairs, 1)) < 0.5, 1, -1) * np.ones_like(annotator)
    follows_here = (annotator < followers * annotators) & (rng.random(annotator.shape) < follows)
    sign = np.where(follows_here, slot, own)
    of_all = Votes(torch.from_numpy(annotator), torch.from_numpy(sign))
    gold = torch.from_numpy((truth[:, 0] > 0).astype(int))
    return World(of_all, annotators, gold, torch.from_numpy(slot).float(), torch.from_numpy(eta))


def read_ukp(folder: Path) -> World:
    """UKPConvArg1: five crowd workers a pair of arguments; gold was estimated from the same votes (MACE)."""
    with open(folder / "pairs.csv", newline="") as file:
        gold = {row["item_id"]: {"a": 1, "b": 0}.get(row["gold"], -1) for row in csv.DictReader(file)}
    items = {item: i for i, item in enumerate(gold)}
    workers: dict[str, int] = {}
    cast: list[list[tuple[int, int]]] = [[] for _ in items]
    with open(folder / "votes.csv", newline="") as file:
        for row in csv.DictReader(file):
            worker = workers.setdefault(row["annotator"], len(workers))
            cast[items[row["item_id"]]].append((worker, {"a": 1, "b": -1, "tie": 0}[row["vote"]]))
    width = max(map(len, cast))
    padded = torch.tensor([votes + [(0, 0)] * (width - len(votes)) for votes in cast])
    return World(Votes(padded[..., 0], padded[..., 1]), len(workers), torch.tensor(list(gold.values())))


def crowd_kit(votes: Votes, name: str) -> Tensor:
    """Posteriors [P] of crowd-kit's GLAD or MACE."""
    frame = crowd_kit_frame(votes)
    frame["label"] = frame["label"].map({True: "chosen", False: "rejected"})  # GLAD takes booleans for a mask
    from crowdkit.aggregation import GLAD, MACE

    model = GLAD(n_iter=30, silent=True) if name == "GLAD" else MACE(n_restarts=3, n_iter=30, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probabilities = model.fit_predict_proba(frame)
    w = torch.full((len(votes.sign),), 0.5, dtype=torch.float64)
    w[torch.tensor(probabilities.index.to_numpy())] = torch.tensor(probabilities["chosen"].fillna(0.0).to_numpy())
    return w


def two_sided(world: World, features: VoteFeatures) -> Tensor:
    votes = vote_table(world.votes, world.annotators, features)
    columns = columns_of_pairs(votes)
    balanced = order_shown(columns["slot"], LabelModelSettings()).random
    prior = replace(PairPrior.flat(votes.num_pairs), columns=columns)
    return (
        Fitter(prior, ["slot"] if balanced else [], LabelModelSettings()).fit(votes, [] if balanced else ["slot"], []).w
    )


def estimates(world: World, baselines: bool) -> tuple[dict[str, Tensor], LabelModelFit]:
    leaning = {} if world.slot is None else {"slot": world.slot}
    features = VoteFeatures(leaning=leaning if world.length is None else {"length": world.length})
    gold = None
    if world.anchors:
        gold = torch.where(torch.arange(len(world.gold)) < world.anchors, 2.0 * world.gold - 1, 0.0)
    fit = fit_label_model(world.votes, world.annotators, features, gold=gold)
    found = {
        "majority": majority(world.votes, world.annotators).w,
        "one-coin": one_coin(world.votes, world.annotators, EMSettings()).w,
        "label model": fit.estimates["label model"],
        "reported": fit.w,
    }
    if world.slot is not None and world.length is None:
        found["two-sided"] = two_sided(world, features)
    if baselines:
        try:
            found["Dawid-Skene"] = dawid_skene(world.votes, world.annotators).w
            if (world.votes.sign != 0).sum() <= _SLOW_VOTES:
                found |= {name: crowd_kit(world.votes, name) for name in ("GLAD", "MACE")}
        except MissingExtraError:
            pass
    return found, fit


def calibration_error(w: Tensor, gold: Tensor) -> float:
    """Expected calibration error of ``w`` on known truths, ten bins."""
    known = gold >= 0
    w, truth = w[known].double(), (gold[known] == 1).double()
    bins = (w * 10).long().clamp(max=9)
    sums = torch.zeros(10, dtype=torch.float64).index_add_(0, bins, w - truth)
    return (sums.abs().sum() / len(w)).item()


def calibration_noise(w: Tensor, gold: Tensor, draws: int = 100) -> float:
    """What the calibration error would be if ``w`` were right: truths drawn from it, mean over ``draws``."""
    generator = torch.Generator().manual_seed(0)
    known = w[gold >= 0].double()
    truths = [(torch.rand(len(known), generator=generator, dtype=torch.float64) < known).long() for _ in range(draws)]
    return sum(calibration_error(known, truth) for truth in truths) / draws


def of_gold(world: World) -> list[str]:
    """One row for a public set: intervals over its gold items."""
    found, fit = estimates(world, baselines=True)
    known = int((world.gold >= 0).sum())
    cells = []
    for name in ESTIMATES:
        share = accuracy(found[name], world.gold) if name in found else None
        cells.append("–" if share is None else f"{share:.3f} ± {1.96 * (share * (1 - share) / known) ** 0.5:.3f}")
    chosen = ", ".join(choice.name for choice in fit.choices if choice.taken) or "one coin"
    factor = "; ".join(f"{choice.name} {choice.log_bayes_factor:+.0f}" for choice in fit.choices)
    said = ", ".join(warned.guard for warned in fit.warnings) or "nothing"
    noise = calibration_noise(fit.w, world.gold)
    return [*cells, chosen, factor, f"{calibration_error(fit.w, world.gold):.3f} ({noise:.3f})", said]


def mean_of(values: list[float]) -> str:
    error = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.3f} ± {error:.3f}"


def of_seeds(make: Callable[[int], World], seeds: range) -> list[str]:
    """One row for a kind of simulated crowd: means over seeds."""
    shares: dict[str, list[float]] = {}
    covered, errors, noise, widths = [], [], [], []
    apart = dict.fromkeys(("dependent_errors", "shared_errors", "upside_down", "annotators_below_half"), 0)
    below, slot = [], 0
    for seed in seeds:
        world = make(seed)
        found, fit = estimates(world, baselines=False)
        judged = torch.where(torch.arange(len(world.gold)) < world.anchors, -1, world.gold)
        for name, w in found.items():
            shares.setdefault(name, []).append(accuracy(w, judged))
        below.append(shares["reported"][-1] - shares["majority"][-1])
        low, high = fit.eta_interval.unbind(-1)
        truth = world.eta
        covered.append(((low <= truth) & (truth <= high)).double().mean().item())
        widths.append((high - low).mean().item())
        errors.append(calibration_error(fit.w, judged))
        noise.append(calibration_noise(fit.w, judged))
        slot += any(choice.taken for choice in fit.choices)
        for warned in fit.warnings:
            apart[warned.guard] = apart.get(warned.guard, 0) + 1
    cells = [mean_of(shares[name]) if name in shares else "–" for name in ESTIMATES if name not in _REAL_ONLY]
    dependence = (apart["dependent_errors"] + apart["shared_errors"]) / len(seeds)
    return [
        *cells, mean_of(below), f"{np.mean(covered):.2f}", f"{np.mean(widths):.2f}",
        f"{np.mean(errors):.3f} ({np.mean(noise):.3f})",
        f"{dependence:.2f}", f"{apart['shared_errors'] / len(seeds):.2f}", f"{apart['upside_down'] / len(seeds):.2f}",
        f"{apart['annotators_below_half'] / len(seeds):.2f}",
        f"{slot / len(seeds):.2f}",
    ]  # fmt: skip


_REAL_ONLY = ("Dawid-Skene", "GLAD", "MACE")
_SEED_HEADS = (
    *(name for name in ESTIMATES if name not in _REAL_ONLY),
    "reported − majority", "η covered", "width", "ECE of w (of it chance)", "warned of dependence",
    "majority reported", "warned upside down", "annotators named below ½", "feature taken",
)  # fmt: skip


def real(data: Path) -> str:
    rows = {}
    for name in SETS:
        votes, workers, gold = read_crowd(data / "crowd_gold", name)
        rows[name] = of_gold(World(votes, workers, gold, torch.ones(votes.sign.shape)))
    rows["UKPConvArg1"] = of_gold(read_ukp(data / "ukpconvarg1"))
    return table("set", (*ESTIMATES, "features", "log Bayes factors", "ECE of w (of it chance)", "warnings"), rows)


def position(seeds: range) -> str:
    """Order shown at random, the same for all annotators of a pair."""
    rows = {
        "nobody follows position": of_seeds(lambda seed: _without_family(seed, 0.0, 1.0), seeds),
        "40 % of votes say first": of_seeds(lambda seed: _without_family(seed, 0.4, 1.0), seeds),
        "60 % of votes say first": of_seeds(lambda seed: _without_family(seed, 0.6, 1.0), seeds),
        "half of the annotators, 70 %": of_seeds(lambda seed: _without_family(seed, 0.7, 0.5), seeds),
        "half follow length, 70 %": of_seeds(lambda seed: _by_length(seed, 0), seeds),
        "the same, 40 anchors": of_seeds(lambda seed: _by_length(seed, 40), seeds),
    }
    return table("crowd", _SEED_HEADS, rows)


def _without_family(seed: int, follows: float, followers: float) -> World:
    world = draw(seed, follows=follows, followers=followers)
    # A follower's reliability is that of his own votes, when either truth is as likely in either slot.
    share = follows * (torch.arange(world.annotators) < followers * world.annotators)
    return world._replace(eta=(1 - share) * world.eta + share * 0.5)


def _by_length(seed: int, anchors: int) -> World:
    """Half of the annotators say what is longer, 70 % of the time; log ratios of lengths N(0, 1), apart from truth."""
    world = _without_family(seed, 0.7, 0.5)
    size = torch.from_numpy(np.random.default_rng(seed).exponential(size=len(world.gold)))
    return world._replace(length=world.slot[:, 0] * size, anchors=anchors)


_SHARED = {
    "nobody": {"family": 0},
    "5 of 12": {"family": 5},
    "12 of 12": {"family": 12},
    "the 8 weakest of 12": {"family": 8, "weakest_first": True},
}


def shared(seeds: range, kinds: Sequence[str] = tuple(_SHARED)) -> str:
    """Judges that all vote on all 500 pairs, mean skill .64; a group's errors correlate by ρ."""
    rows = {}
    for name in kinds:
        kind = _SHARED[name]
        for ρ in CORRELATIONS[1:] if kind["family"] else CORRELATIONS[:1]:

            def make(seed: int, kind: dict = kind, correlation: float = ρ) -> World:
                world = draw(seed, 12, 500, 12, (0.6, 0.5), correlation=correlation, **kind)
                return world._replace(slot=None)

            rows[f"{name}, ρ {ρ}"] = of_seeds(make, seeds)
    return table("errors shared by", _SEED_HEADS, rows)


def honest(seeds: range) -> str:
    """Independent errors: 30 annotators, five votes a pair, skills like those of the public sets; 12 judges of all."""
    rows = {}
    for pairs in (300, 1200, 4800):
        few = seeds if pairs < 4000 else seeds[: max(2, len(seeds) // 3)]
        rows[f"{pairs} pairs, {len(few)} seeds"] = of_seeds(
            lambda seed, pairs=pairs: draw(1000 + seed, 30, pairs, 5, (1.5, 0.6))._replace(slot=None), few
        )
    for mean, spread in ((1.1, 0.7), (0.6, 0.5)):
        rows[f"12 judges, skills N({mean}, {spread}²), 500 pairs"] = of_seeds(
            lambda seed, s=(mean, spread): draw(2000 + seed, 12, 500, 12, s)._replace(slot=None), seeds
        )
    return table("independent crowd", _SEED_HEADS, rows)


def anchors(seeds: range) -> str:
    """Twelve judges, η uniform on (.15, .65), 500 pairs, 40 of them anchors; shares on the other 460."""
    columns: dict[str, list[float]] = {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        eta = rng.uniform(0.15, 0.65, 12)
        truth = np.where(rng.random((500, 1)) < 0.5, 1, -1)
        sign = np.where(rng.random((500, 12)) < eta, truth, -truth)
        votes = Votes(torch.arange(12).expand(500, 12).contiguous(), torch.from_numpy(sign))
        truths = torch.from_numpy(truth[:, 0]).double()
        gold, rest = truths.clone(), ((truths > 0).long())
        gold[40:], rest[:40] = 0, -1
        fit, alone = fit_label_model(votes, 12, gold=gold), fit_label_model(votes, 12)
        oracle = torch.sigmoid(torch.from_numpy((sign * np.log(eta / (1 - eta))).sum(1)))
        confidence = torch.maximum(alone.w, 1 - alone.w)[rest >= 0].mean().item()
        guards = {warning.guard for warning in alone.warnings}
        warned = bool({"upside_down", "annotators_below_half", "shared_errors"} & guards)
        found = {
            "η known": accuracy(oracle, rest), "40 anchors": accuracy(fit.w, rest),
            "majority": accuracy(fit.estimates["majority"], rest), "no anchors": accuracy(alone.w, rest),
            "confidence without": confidence, "warned without": float(warned),
            "of it upside down": float("upside_down" in guards),
        }  # fmt: skip
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    return table("crowd", columns, {"worse than a coin": [mean_of(values) for values in columns.values()]})


def design(data: Path, seeds: range = range(3)) -> str:
    """Votes drawn on UKPConvArg1's pairs by its annotators, at the η of the label model: what do the estimates say of
    the truth, and what of a "gold" that Dawid-Skene estimates from the same votes, as the set's own gold was?"""
    world = read_ukp(data / "ukpconvarg1")
    votes = vote_table(world.votes, world.annotators)
    eta = Fitter(PairPrior.flat(votes.num_pairs), [], LabelModelSettings()).fit(votes, (), []).eta
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        truth = torch.rand(votes.num_pairs, generator=generator) < 0.5
        right = (
            torch.rand(world.votes.sign.shape, generator=generator, dtype=torch.float64) < eta[world.votes.annotator]
        )
        sign = torch.where(right == truth.unsqueeze(-1), 1, -1) * world.votes.sign.abs()
        drawn = Votes(world.votes.annotator, sign)
        table_of = vote_table(drawn, world.annotators)
        model = Fitter(PairPrior.flat(votes.num_pairs), [], LabelModelSettings()).fit(table_of, (), [])
        estimated = dawid_skene(drawn, world.annotators).w
        estimates_of = {
            "majority": majority(drawn, world.annotators).w,
            "one-coin": one_coin(drawn, world.annotators, EMSettings()).w,
            "Dawid-Skene": estimated,
            "label model": model.w,
        }
        for gold, answers in (("the truth", truth), ("Dawid-Skene of the same votes", estimated > 0.5)):
            for name, w in estimates_of.items():
                found.setdefault(gold, {}).setdefault(name, []).append(accuracy(w, answers.long()))
    rows = {gold: [f"{np.mean(shares):.3f}" for shares in by_name.values()] for gold, by_name in found.items()}
    return table("gold is", found["the truth"], rows)


def families(seeds: range) -> str:
    """Which of two blocks of judges is the family? Eight of twelve share errors, ρ .3; one block or both declared."""
    settings = replace(LabelModelSettings(), bootstrap=0)
    declared = {
        "nobody": (),
        "the eight": (range(8),),
        "the other four": (range(8, 12),),
        "both": (range(8), range(8, 12)),
    }
    rows = {}
    for name, kind in (("drawn at random", {}), ("the weakest", {"weakest_first": True})):
        shares: dict[str, list[float]] = {"majority": []}
        for seed in seeds:
            world = draw(3000 + seed, 12, 500, 12, (0.6, 0.5), family=8, correlation=0.3, **kind)
            shares["majority"].append(accuracy(majority(world.votes, 12).w, world.gold))
            for said, blocks in declared.items():
                family = torch.full((12,), -1)
                for number, block in enumerate(blocks):
                    family[list(block)] = number
                fit = fit_label_model(world.votes, 12, families=family, settings=settings)
                shares.setdefault(said, []).append(accuracy(fit.estimates["label model"], world.gold))
        rows[f"the eight are {name}"] = [mean_of(values) for values in shares.values()]
    return table("declared", ("majority", *declared), rows)


def coins(seeds: range) -> str:
    """How often is a crowd without anchors said to be worse than a coin, by its skills? Dependence is not asked."""
    settings = replace(LabelModelSettings(), bootstrap=0)

    def logit(mean: float, spread: float, judges: int, least: float = 0.0) -> Callable:
        return lambda rng: np.maximum(least, 1 / (1 + np.exp(-(mean + spread * rng.normal(size=judges)))))

    crowds = {
        "12 judges, logit skills N(.6, .5²)": logit(0.6, 0.5, 12),
        "the same, nobody below ½": logit(0.6, 0.5, 12, 0.5),
        "30 judges, N(.6, .5²)": logit(0.6, 0.5, 30),
        "12 judges, N(1.1, .7²)": logit(1.1, 0.7, 12),
        "12 judges, η uniform on (.15, .65)": lambda rng: rng.uniform(0.15, 0.65, 12),
        "12 judges, (.2, .7)": lambda rng: rng.uniform(0.2, 0.7, 12),
        "30 judges, (.15, .65)": lambda rng: rng.uniform(0.15, 0.65, 30),
    }
    rows = {}
    for name, skills in crowds.items():
        said = dict.fromkeys(("upside_down", "annotators_below_half"), 0)
        confidence, wrong = [], []
        for seed in seeds:
            rng = np.random.default_rng(7000 + seed)
            eta = skills(rng)
            truth = np.where(rng.random((500, 1)) < 0.5, 1, -1)
            annotator = np.argsort(rng.random((500, len(eta))), 1)[:, :12]
            sign = np.where(rng.random(annotator.shape) < eta[annotator], truth, -truth)
            votes = Votes(torch.from_numpy(annotator), torch.from_numpy(sign))
            fit = fit_label_model(votes, len(eta), settings=settings)
            for warned in fit.warnings:
                said[warned.guard] = said.get(warned.guard, 0) + 1
            confidence.append(torch.maximum(fit.w, 1 - fit.w).mean().item())
            wrong.append(accuracy(fit.w, torch.from_numpy((truth[:, 0] > 0).astype(int))))
        either = (said["upside_down"] + said["annotators_below_half"]) / len(seeds)
        rows[name] = [
            f"{said['upside_down'] / len(seeds):.2f}",
            f"{said['annotators_below_half'] / len(seeds):.2f}", f"{either:.2f}",
            f"{np.mean(confidence):.2f}", f"{np.mean(wrong):.2f}",
        ]  # fmt: skip
    heads = ("upside down", "annotators named below ½", "either", "mean confidence", "truths found")
    return table("500 pairs, 12 votes a pair", heads, rows)


_SIMULATED = {
    "coins": coins,
    "families": families,
    "position": position,
    "shared": shared,
    **{f"shared by {name}": partial(shared, kinds=(name,)) for name in _SHARED},
    "honest": honest,
    "anchors": anchors,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEMO_RPO_DATA", "../shared/data")))
    on_data = {"real": real, "design": design}
    parts = (*on_data, *_SIMULATED)
    whole = [part for part in parts if not part.startswith("shared by")]
    parser.add_argument("--only", nargs="*", choices=parts, default=whole)
    parser.add_argument("--write", help="replace the blocks in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for part in arguments.only:
        start = time.process_time()
        text = on_data[part](arguments.data) if part in on_data else _SIMULATED[part](seeds)
        print(f"{text}\n({part}: {time.process_time() - start:.0f} s of one core)\n", flush=True)
        if arguments.write:
            replace_block(arguments.write, part, text)


if __name__ == "__main__":
    main()
