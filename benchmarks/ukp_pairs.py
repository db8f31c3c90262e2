"""UKPConvArg1 for the benchmarks that look at answers: pairs with texts, votes, and the authors' gold labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nemo_rpo.crowd.factors.answer_features import FEATURES, features


class UKP(NamedTuple):
    """Attributes: pairs' names; debate int [n]; gold int8 [n] (+1 the first, -1 the second, 0 none); x float64 [n, d],
    differences of features; sides int [n, 2], indices of ``answers`` (prompt, text); votes: pair, worker, sign (0 a
    tie) of each."""

    names: list[str]
    debate: np.ndarray
    gold: np.ndarray
    x: np.ndarray
    sides: np.ndarray
    answers: list[tuple[str, str]]
    votes: list[tuple[int, str, int]]


def read_ukp(folder: Path) -> UKP:
    topics = {t["topic"]: f"{t['title']}\n{t['stance']}\n" for t in _lines(folder / "topics.jsonl")}
    place: dict[tuple[str, str], int] = {}
    answers, of_answer = [], []
    for line in _lines(folder / "arguments.jsonl"):
        place[line["topic"], line["arg"]] = len(answers)
        answers.append((topics[line["topic"]], line["text"]))
        of_answer.append(features(*answers[-1], list(FEATURES)))
    told, number, debates = np.array(of_answer), {}, {}
    names, debate, gold, sides = [], [], [], []
    for row in _rows(folder / "pairs.csv"):
        number[row["item_id"]] = len(names)
        names.append(row["item_id"])
        debate.append(debates.setdefault(row["topic"], len(debates)))
        gold.append({"a": 1, "b": -1}.get(row["gold"], 0))
        sides.append([place[row["topic"], row[side]] for side in ("arg_a", "arg_b")])
    sides = np.array(sides)
    votes = [
        (number[row["item_id"]], row["annotator"], {"a": 1, "b": -1, "tie": 0}[row["vote"]])
        for row in _rows(folder / "votes.csv")
    ]
    x = told[sides[:, 0]] - told[sides[:, 1]]
    return UKP(names, np.array(debate), np.array(gold, np.int8), x, sides, answers, votes)


def _lines(path: Path):
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _rows(path: Path):
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
