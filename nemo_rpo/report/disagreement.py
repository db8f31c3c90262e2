"""Disagreement that looks like taste: people who contradict the model, and each other far less than errors would.

The EM takes errors of annotators to be independent, given which response is better. Two annotators of reliability η_a
and η_b then agree on a pair with probability η_a η_b + (1-η_a)(1-η_b). Those who share a taste that the model lacks
look unreliable to the EM, and agree with each other nevertheless.

Shapes: v labels, K annotators.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations
from typing import NamedTuple

import numpy as np

from nemo_rpo.report.run import Annotators, Labels

_SHARED = 8  # pairs that two annotators must both have labelled before their agreement says anything
_VERDICTS = 3  # labels that must stand together against the model on one pair
_UNANIMOUS = 0.8
_CONFIDENT = 0.75  # what the model must give the other response
_COMPARISONS = 2_000_000  # pairs of annotators looked at; a crowd has a quadratic number of them


class Camp(NamedTuple):
    """Annotators who agree with each other more than their reliabilities allow.

    Attributes:
        members: indices, by number of labels.
        agreement: share of their shared pairs on which two of them agree.
        expected: what that share would be if they erred independently.
        shared: shared pairs (of two members each) behind it.
        with_model: share of their labels that the model agrees with.
    """

    members: list[int]
    agreement: float
    expected: float
    shared: int
    with_model: float


class Taste(NamedTuple):
    """What looks like taste.

    Attributes:
        comparable: pairs of annotators with enough shared pairs to compare.
        camps: largest first.
        contested: int64, a label of each pair on which at least three annotators agree (four in five of them, or more)
            and the model is confident of the opposite; the clearest first.
    """

    comparable: int
    camps: list[Camp]
    contested: np.ndarray


def taste(labels: Labels, annotators: Annotators) -> Taste:
    """Finds camps by a one-sided z-test of every comparable pair of annotators whose labels the model mostly denies or
    half denies, at a family-wise error of 5 % (Bonferroni), and joins those who are linked.
    """
    of_pair = _by_pair(labels)
    agree, shared = _agreements(labels, of_pair)
    side = np.sign(labels.delta_last) * labels.sign
    judged = ~np.isnan(side) & (side != 0)
    count = np.bincount(labels.annotator[judged], minlength=len(annotators) + 1)
    denied = np.bincount(labels.annotator[judged], weights=side[judged] < 0, minlength=len(annotators) + 1)
    with_model = 1 - denied / np.maximum(count, 1)

    comparable = {pair for pair, n in shared.items() if n >= _SHARED}
    links = defaultdict(set)
    limit = _upper_quantile(0.05 / max(len(comparable), 1))
    for a, b in comparable:
        n, expected = shared[a, b], _expected(annotators.eta[a], annotators.eta[b])
        z = (agree[a, b] - n * expected) / math.sqrt(n * expected * (1 - expected))
        if z > limit and with_model[a] < 0.6 and with_model[b] < 0.6:
            links[a].add(b)
            links[b].add(a)
    camps = [_camp(members, agree, shared, annotators, with_model, count) for members in _components(links)]
    camps.sort(key=lambda camp: (-len(camp.members), camp.members))
    return Taste(len(comparable), camps, _contested(labels, of_pair))


def _by_pair(labels: Labels) -> list[np.ndarray]:
    """Rows of the labels of each pair that has several."""
    order = np.argsort(labels.pair, kind="stable")
    _, start = np.unique(labels.pair[order], return_index=True)
    return [rows for rows in np.split(order, start[1:]) if len(rows) > 1]


def _agreements(labels: Labels, of_pair: list[np.ndarray]) -> tuple[dict, dict]:
    agree: dict[tuple[int, int], int] = defaultdict(int)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    looked = 0
    for rows in of_pair:
        cast = sorted(zip(labels.annotator[rows].tolist(), labels.sign[rows].tolist(), strict=True))
        for (a, first), (b, second) in combinations(cast, 2):
            if a != b:
                shared[a, b] += 1
                agree[a, b] += first == second
        looked += len(rows) ** 2 // 2
        if looked > _COMPARISONS:
            break
    return agree, shared


def _expected(one: float, other: float) -> float:
    return float(np.clip(one * other + (1 - one) * (1 - other), 1e-6, 1 - 1e-6))


def _upper_quantile(tail: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(1 - tail)


def _components(links: dict[int, set[int]]) -> list[list[int]]:
    left, found = set(links), []
    while left:
        reached, edge = set(), [left.pop()]
        while edge:
            a = edge.pop()
            reached.add(a)
            edge += links[a] - reached
        left -= reached
        found.append(sorted(reached))
    return found


def _camp(
    members: list[int], agree: dict, shared: dict, annotators: Annotators, with_model: np.ndarray, count: np.ndarray
) -> Camp:
    among = [pair for pair in combinations(members, 2) if shared.get(pair)]
    n = sum(shared[pair] for pair in among)
    expected = sum(shared[a, b] * _expected(annotators.eta[a], annotators.eta[b]) for a, b in among) / n
    mean = float(np.average(with_model[members], weights=count[members]))
    by_labels = sorted(members, key=lambda k: -count[k])
    return Camp(by_labels, sum(agree[pair] for pair in among) / n, expected, n, mean)


def _contested(labels: Labels, of_pair: list[np.ndarray]) -> np.ndarray:
    found = []
    for rows in of_pair:
        balance, n = int(labels.sign[rows].sum(dtype=np.int64)), len(rows)
        delta = labels.delta_last[rows[0]]
        against = -delta * np.sign(balance)
        if (
            n >= _VERDICTS
            and abs(balance) >= (2 * _UNANIMOUS - 1) * n
            and against > math.log(_CONFIDENT / (1 - _CONFIDENT))
        ):
            with_most = rows[labels.sign[rows] == np.sign(balance)]
            found.append((against * abs(balance), int(with_most[0])))
    return np.array([row for _, row in sorted(found, reverse=True)], np.int64)
