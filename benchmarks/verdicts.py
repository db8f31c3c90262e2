"""The verdicts of ``annotators`` and the warnings of ``validate``: how often they are wrong on honest crowds, and how
surely they speak where something is.

    python benchmarks/verdicts.py [--runs 20] [--only honest habits warnings] [--write docs/annotators.md]

Every crowd is drawn anew: logit skills from a normal distribution, responses shown in a random order, labels in a
random order of time, 5,000 votes or fewer, so that ``validate`` looks at all of them. Verdicts are counted by
annotator, with the bound that they ask for (.70); warnings by crowd, with Wilson's 95 % interval.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from markdown_table import replace_block, table

from nemo_rpo.crowd.crowd_settings import CrowdSettings
from nemo_rpo.crowd.long_form import vote_table
from nemo_rpo.crowd.reliability import Reliability, assess
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.validation.together import order_test

ORDER, BOTH_WAYS = "votes_follow_order", "both_ways"
DEPENDENCE = ("dependent_errors", "shared_errors")
WORSE_THAN_A_COIN = ("upside_down", "annotators_below_half")


@dataclass(frozen=True)
class Case:
    """A crowd.

    Attributes:
        annotators, labels, votes: of whom each gives so many labels, with so many votes a pair.
        mean, spread: of the logit skills; ``uniform`` instead of them: the interval of the reliabilities.
        first: share of its labels in which a follower says what was shown first. followers: share of such annotators.
        loses: nats of logit skill lost in the later half of a drifter's labels. drifters: share of such annotators.
        family: annotators whose errors correlate by ``correlation``.
        always_first: the order shown is that of the file, in which the first response is better in so many of 100.
    """

    annotators: int = 50
    labels: int = 100
    votes: int = 5
    mean: float = 1.5
    spread: float = 0.6
    uniform: tuple[float, float] | None = None
    first: float = 0.0
    followers: float = 0.0
    loses: float = 0.0
    drifters: float = 0.0
    family: int = 0
    correlation: float = 0.0
    always_first: int = 0


HONEST = {
    "50 annotators, 100 labels, 5 a pair": Case(),
    "25 annotators, 200 labels, 3 a pair": Case(25, 200, 3),
    "100 annotators, 30 labels, 3 a pair": Case(100, 30, 3),
    "weaker: 40 annotators, 100 labels, 5 a pair, N(.9, .5²)": Case(40, 100, 5, 0.9, 0.5),
    "12 judges who vote on all of 400 pairs, N(1.1, .7²)": Case(12, 400, 12, 1.1, 0.7),
    "few: 6 annotators, 20 labels, 3 a pair": Case(6, 20, 3),
}
HABITS = {
    "a fifth follow position, 70 %, 200 labels": Case(25, 200, 5, first=0.7, followers=0.2),
    "a fifth follow position, 40 %, 200 labels": Case(25, 200, 5, first=0.4, followers=0.2),
    "a fifth lose 2 logits, 200 labels": Case(25, 200, 5, mean=2.0, loses=2.0, drifters=0.2),
    "a fifth lose 1 logit, 200 labels": Case(25, 200, 5, mean=2.0, loses=1.0, drifters=0.2),
}
# Warning (any of these) → the case it is for.
WARNINGS = {
    "nobody_heard: one vote a pair": (("nobody_heard",), Case(votes=1)),
    "votes_follow_order": ((ORDER,), Case(first=0.3, followers=1.0)),
    "order_not_random": (("order_not_random",), Case(always_first=75)),
    "errors together: 5 of 12 judges, ρ .3": (DEPENDENCE, Case(12, 400, 12, 0.6, 0.5, family=5, correlation=0.3)),
    "errors together: 4 of 12 judges, ρ .5": (DEPENDENCE, Case(12, 400, 12, 0.6, 0.5, family=4, correlation=0.5)),
    "errors together: all 12 judges, ρ .3": (DEPENDENCE, Case(12, 400, 12, 0.6, 0.5, family=12, correlation=0.3)),
    "errors together: 10 of 50 annotators, ρ .5": (DEPENDENCE, Case(family=10, correlation=0.5)),
    "worse than a coin: 12 judges, η uniform on (.15, .65)": (
        WORSE_THAN_A_COIN,
        Case(12, 400, 12, uniform=(0.15, 0.65)),
    ),
}


def draw(case: Case, seed: int) -> tuple[VoteTable, np.ndarray, np.ndarray]:
    """The votes, and of every annotator, in the table's order, reliability [K] and whether he has a habit, bool [K]."""
    rng = np.random.default_rng(seed)
    people, pairs = case.annotators, case.annotators * case.labels // case.votes
    skill = case.mean + case.spread * rng.normal(size=people)
    if case.uniform:
        eta = rng.uniform(*case.uniform, size=people)
        skill = np.log(eta / (1 - eta))
    # Everybody the same number of labels, on different pairs.
    turn = np.argsort(rng.random((-(-pairs * case.votes // people), people)), 1).flatten()[: pairs * case.votes]
    annotator = turn.reshape(pairs, case.votes)
    share = case.always_first / 100 if case.always_first else 0.5
    truth = np.where(rng.random((pairs, 1)) < share, 1, -1)
    shown = np.ones((pairs, 1)) if case.always_first else np.where(rng.random((pairs, 1)) < 0.5, 1, -1)
    time = rng.random(annotator.shape)
    late = time > np.array([np.median(time[annotator == k]) for k in range(people)])[annotator]
    drifts, follows = (np.arange(people) < count * people for count in (case.drifters, case.followers))
    now = skill[annotator] - case.loses * (late & drifts[annotator])
    right = 1 / (1 + np.exp(-now))
    common = (annotator < case.family) & (rng.random(annotator.shape) < math.sqrt(case.correlation))
    luck = np.where(common, rng.random((pairs, 1)), rng.random(annotator.shape))
    following = follows[annotator] & (rng.random(annotator.shape) < case.first)
    sign = np.where(following, shown, np.where(luck < right, truth, -truth))
    eta = np.array([right[annotator == k].mean() for k in range(people)])
    eta = np.where(follows, case.first * 0.5 + (1 - case.first) * eta, eta)
    columns = {
        "pair": np.repeat(np.arange(pairs), case.votes).tolist(),
        "annotator": [f"{k:03}" for k in annotator.flatten()],
        "vote": sign.flatten().astype(int).tolist(),
        "shown_first": np.broadcast_to(np.where(shown > 0, "a", "b"), sign.shape).flatten().tolist(),
        "time": (1e6 * time).flatten().tolist(),
    }
    return vote_table(columns, {name: name for name in columns}), eta, drifts | follows


def said(table_of: VoteTable, found: Reliability) -> set[str]:
    """Kinds of ``validate``'s warnings of the crowd: the label model's, and its own test of the order. That somebody
    voted on a pair twice, both ways, is so in some of these crowds.
    """
    order = order_test(table_of)
    kinds = {warning.kind for warning in found.warnings} - {BOTH_WAYS}
    return kinds | ({ORDER} if order is not None and order.follows else set())


def wilson(hits: int, of: int) -> str:
    """A share with its 95 % interval."""
    if not of:
        return "–"
    share, z2 = hits / of, 1.96**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = 1.96 / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2))
    return f"{share:.3f} [{max(0, middle - half):.3f}, {min(1, middle + half):.3f}]"


def _share(chosen: Iterable[bool], among: Iterable[bool]) -> str:
    chosen, among = np.array(list(chosen)), np.array(list(among))
    return wilson(int((chosen & among).sum()), int(among.sum()))


def _verdicts(case: Case, runs: int, first: int) -> tuple[np.ndarray, np.ndarray, list[str], list[str], Counter[str]]:
    """Of every annotator of ``runs`` crowds the reliability, whether he has a habit, verdict and reason; and of how
    many crowds each warning spoke, under "" any.
    """
    eta, habit, verdicts, reasons, spoke = [], [], [], [], Counter()
    for run in range(runs):
        votes, of_truth, has_habit = draw(case, first + run)
        found = assess(votes)
        by_id = {row.annotator: row for row in found.annotators}
        rows = [by_id[name] for name in votes.annotators.ids]
        eta.append(of_truth), habit.append(has_habit)
        verdicts += [row.verdict for row in rows]
        reasons += [row.reason for row in rows]
        kinds = said(votes, found)
        spoke.update(kinds | ({""} if kinds else set()))
    return np.concatenate(eta), np.concatenate(habit), verdicts, reasons, spoke


def _has_habit(verdict: str, reason: str) -> bool:
    return verdict == "watch" and ("of labels say" in reason or "later half" in reason)


def honest(runs: int) -> str:
    """Both tables of honest crowds: verdicts, and warnings."""
    enough, verdict_rows, warning_rows = CrowdSettings().good_enough, {}, {}
    everything: Counter[str] = Counter()
    for row, (name, case) in enumerate(HONEST.items()):
        eta, _, verdicts, reasons, spoke = _verdicts(case, runs, 10_000 * (row + 1))
        retrain, trust, few = ([v == word for v in verdicts] for word in ("retrain", "trust", "too few labels to say"))
        habits = [_has_habit(v, r) for v, r in zip(verdicts, reasons, strict=True)]
        verdict_rows[name] = [
            _share(retrain, eta >= enough), _share(trust, eta < enough), _share(habits, eta > 0),
            _share(retrain, eta < 0.6), _share(trust, eta > 0.8), f"{np.mean(few):.2f}",
        ]  # fmt: skip
        everything.update(spoke)
        of_kind = {
            kinds: sum(spoke[kind] for kind in kinds)
            for kinds in ((ORDER,), ("order_not_random",), DEPENDENCE, WORSE_THAN_A_COIN)
        }
        warning_rows[name] = [wilson(spoke[""], runs), *(f"{count / runs:.2f}" for count in of_kind.values())]
    warning_rows["all of them"] = [wilson(everything[""], runs * len(HONEST)), "", "", "", ""]
    heads = (
        "retrain, though .70 or above", "trust, though below .70", "watched for a habit",
        "retrain, of those below .60", "trust, of those above .80", "too few labels to say",
    )  # fmt: skip
    kinds = ("any warning", "votes follow the order", "order not random", "errors together", "worse than a coin")
    return f"{table('honest crowd', heads, verdict_rows)}\n\n{table('honest crowd', kinds, warning_rows)}"


def habits(runs: int) -> str:
    """How surely a habit is seen."""
    rows = {}
    for row, (name, case) in enumerate(HABITS.items()):
        _, habit, verdicts, reasons, _ = _verdicts(case, runs, 100_000 + 10_000 * row)
        seen = [_has_habit(v, r) for v, r in zip(verdicts, reasons, strict=True)]
        not_trusted = [v in ("watch", "retrain") for v in verdicts]
        rows[name] = [_share(seen, habit), _share(not_trusted, habit), _share(seen, ~habit)]
    return table("habit", ("watched for it", "watch or retrain", "others watched for a habit"), rows)


def warnings(runs: int) -> str:
    """Power of the warnings."""
    rows = {}
    for row, (name, (kinds, case)) in enumerate(WARNINGS.items()):
        crowds = (draw(case, 500_000 + 10_000 * row + run)[0] for run in range(runs))
        rows[name] = [wilson(sum(bool(said(crowd, assess(crowd)) & set(kinds)) for crowd in crowds), runs)]
    return table("warning", ["power"], rows)


def main() -> None:
    parts = {"honest": honest, "habits": habits, "warnings": warnings}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=parts, default=list(parts))
    parser.add_argument("--write", help="replace the blocks in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.only:
        text = parts[part](arguments.runs)
        print(f"{text}\n", flush=True)
        if arguments.write:
            replace_block(arguments.write, f"verdicts, {part}", text)


if __name__ == "__main__":
    main()
