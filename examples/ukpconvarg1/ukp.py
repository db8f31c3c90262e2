"""UKPConvArg1 as pairs of arguments with the votes of their workers.

Habernal and Gurevych, "Which argument is more convincing?", ACL 2016: 16,927 pairs of arguments for one stance in a
debate, each judged by four or five crowd workers. The folder holds

    topics.jsonl     {"topic", "title", "stance", ...}
    arguments.jsonl  {"topic", "arg", "text"}
    pairs.csv        item_id, topic, arg_a, arg_b, gold (a | b | tie | empty), ...
    votes.csv        item_id, annotator, vote (a | b | tie)
    workers.csv      annotator, mace_competence, ...

``gold`` and the competence of a worker were estimated by the authors from these same votes (with MACE): a second
opinion, not the truth.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_rpo.errors import DataError

SIGNED = ("a", "b")


@dataclass(frozen=True)
class Vote:
    """One worker's answer: ``"a"`` or ``"b"`` is the more convincing argument, or ``"tie"``."""

    annotator: str
    vote: str

    def inverted(self) -> "Vote":
        """The opposite answer; a tie has none."""
        return Vote(self.annotator, {"a": "b", "b": "a"}.get(self.vote, self.vote))


@dataclass(frozen=True)
class Pair:
    """Two arguments for the same stance, and who found which more convincing.

    Attributes:
        title: the debate; both its stances share it.
        gold: the authors' estimate, ``"a"``, ``"b"``, ``"tie"``, or ``""`` where they gave none.
    """

    pair_id: str
    title: str
    stance: str
    response_a: str
    response_b: str
    gold: str
    votes: tuple[Vote, ...]

    @property
    def prompt(self) -> str:
        """Debate and stance, a line each; the argument follows on a line of its own."""
        return f"{self.title}\n{self.stance}\n"

    @property
    def signed_votes(self) -> list[Vote]:
        """The votes that say something: all but the ties."""
        return [vote for vote in self.votes if vote.vote in SIGNED]

    @property
    def has_gold_side(self) -> bool:
        return self.gold in SIGNED

    def responses(self, chosen: str) -> tuple[str, str]:
        """(chosen, rejected) if side ``chosen`` is preferred."""
        return (self.response_a, self.response_b) if chosen == "a" else (self.response_b, self.response_a)


def read_pairs(folder: Path) -> list[Pair]:
    """All pairs in the order of ``pairs.csv``.

    Raises:
        DataError: a file is missing, a field is missing, or a row names an argument, topic or pair that does not exist.
    """
    topics = {row["topic"]: row for row in _jsonl(folder / "topics.jsonl", ("topic", "title", "stance"))}
    arguments = _jsonl(folder / "arguments.jsonl", ("topic", "arg", "text"))
    texts = {(row["topic"], row["arg"]): row["text"] for row in arguments}
    votes: dict[str, list[Vote]] = defaultdict(list)
    for row in _csv(folder / "votes.csv", ("item_id", "annotator", "vote")):
        if row["vote"] not in (*SIGNED, "tie"):
            raise DataError(f"{folder / 'votes.csv'}: {row['item_id']} has the vote {row['vote']!r}, not a, b or tie")
        votes[row["item_id"]].append(Vote(row["annotator"], row["vote"]))
    pairs = []
    for row in _csv(folder / "pairs.csv", ("item_id", "topic", "arg_a", "arg_b", "gold")):
        try:
            topic = topics[row["topic"]]
            response_a, response_b = (texts[row["topic"], row[side]] for side in ("arg_a", "arg_b"))
        except KeyError as exc:
            raise DataError(
                f"{folder / 'pairs.csv'}: {row['item_id']} names {exc.args[0]!r}, which is not there"
            ) from exc
        cast = tuple(votes.pop(row["item_id"], ()))
        pairs.append(Pair(row["item_id"], topic["title"], topic["stance"], response_a, response_b, row["gold"], cast))
    if votes:
        raise DataError(
            f"{folder / 'votes.csv'}: {len(votes)} items are not in pairs.csv, the first {next(iter(votes))!r}"
        )
    return pairs


def read_competence(folder: Path) -> dict[str, float]:
    """MACE's competence of every worker, in [0, 1]."""
    rows = _csv(folder / "workers.csv", ("annotator", "mace_competence"))
    return {row["annotator"]: float(row["mace_competence"]) for row in rows}


def _csv(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, str]]:
    with _open(path) as file:
        reader = csv.DictReader(file)
        _require(path, fields, reader.fieldnames or ())
        yield from reader


def _jsonl(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, str]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as exc:
                raise DataError(f"{path}:{number}: not JSON ({exc.msg})") from exc
            _require(f"{path}:{number}", fields, row)
            yield row


def _open(path: Path):
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the folder of UKPConvArg1 with --data")
    return path.open(encoding="utf-8", newline="")


def _require(where: Path | str, fields: tuple[str, ...], seen) -> None:
    missing = [field for field in fields if field not in seen]
    if missing:
        raise DataError(f"{where}: no field {missing[0]!r}; it has {', '.join(map(repr, seen)) or 'none'}")
