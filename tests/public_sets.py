"""Public sets of votes, as the folder of shared data holds them, in the layout ``votes``."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def pandalm(folder: Path) -> Iterator[dict[str, Any]]:
    """PandaLM's test set: 999 pairs, three humans and two judge models."""
    votes = _votes(folder / "votes.csv")
    for item in _lines(folder / "items.jsonl"):
        yield {
            "pair_id": item["item_id"],
            "prompt": f"{item['instruction']}\n{item['input']}\n",
            "response_a": item["response_a"],
            "response_b": item["response_b"],
            "votes": votes[item["item_id"]],
        }


def ukpconvarg1(folder: Path) -> Iterator[dict[str, Any]]:
    """UKPConvArg1: 16,927 pairs of arguments, 3,815 crowd workers."""
    topics = {topic["topic"]: f"{topic['title']}\n{topic['stance']}\n" for topic in _lines(folder / "topics.jsonl")}
    texts = {(line["topic"], line["arg"]): line["text"] for line in _lines(folder / "arguments.jsonl")}
    votes = _votes(folder / "votes.csv")
    with (folder / "pairs.csv").open(encoding="utf-8", newline="") as file:
        for pair in csv.DictReader(file):
            yield {
                "pair_id": pair["item_id"],
                "prompt": topics[pair["topic"]],
                "response_a": texts[pair["topic"], pair["arg_a"]],
                "response_b": texts[pair["topic"], pair["arg_b"]],
                "votes": votes[pair["item_id"]],
                "gold": pair["gold"] or None,
            }


def pandalm_battles(folder: Path) -> Iterator[dict[str, str]]:
    """PandaLM's votes as comparisons of the models that wrote the responses."""
    votes = _votes(folder / "votes.csv")
    for item in _lines(folder / "items.jsonl"):
        first, second = item["models"].split("_")
        for vote in votes[item["item_id"]]:
            yield {"model_a": first, "model_b": second, "winner": vote["vote"], "annotator": vote["annotator"]}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _votes(path: Path) -> dict[str, list[dict[str, str]]]:
    votes = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for vote in csv.DictReader(file):
            votes[vote["item_id"]].append({"annotator": vote["annotator"], "vote": vote["vote"]})
    return votes
