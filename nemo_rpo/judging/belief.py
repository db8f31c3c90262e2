"""Whom to believe: the votes of judges and people through the label model that everything else uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_rpo.crowd.crowd_settings import CrowdSettings
from nemo_rpo.crowd.reliability import Reliability, assess
from nemo_rpo.data.files.stage import fingerprint, write_table
from nemo_rpo.data.rows import Vote
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.judging.collecting import Judged
from nemo_rpo.judging.habits import Habits, habits_of
from nemo_rpo.judging.judged_pairs import JudgedPair, as_table

BELIEVED = {"pair_id": "string", "p_a": "float64", "votes": "int64", "gold": "string"}


@dataclass(frozen=True)
class Believed:
    """What the votes come to.

    Attributes:
        reliability: of judges and people, with warnings and, with anchors, the estimates side by side.
        habits: of the judges.
        p_a: by pair, the probability that response a is better; a pair that nobody voted on is not in it.
        votes: of the judges, by pair.
    """

    reliability: Reliability
    habits: list[Habits]
    p_a: dict[str, float]
    votes: dict[str, list[Vote]]


def believe(pairs: Sequence[JudgedPair], judged: Sequence[Judged], settings: CrowdSettings | None = None) -> Believed:
    """Fits the label model to all votes on ``pairs``: the order shown is a leaning that it may take, stated
    probabilities are strengths, families count for fewer votes, gold labels are evidence and judges.

    Raises:
        ConfigError: no judge is left. DataError: nobody prefers any response.
    """
    off = "; ".join(f"{one.name}: {one.off}" for one in judged if one.off)
    if judged and all(one.off for one in judged) and not any(pair.votes for pair in pairs):
        raise ConfigError(f"no judge is left: {off}")
    votes: dict[str, list[Vote]] = {}
    for one in judged:
        for pair, vote in one.votes().items():
            votes.setdefault(pair, []).append(vote)
    try:
        result = assess(as_table(pairs, votes), settings)
    except DataError as exc:
        raise DataError(f"{exc}; judges that were switched off: {off}") if off else exc from None
    p_a = dict(zip(result.pairs["pair"], result.pairs["first_better"].tolist(), strict=True))
    return Believed(result, [habits_of(one, p_a) for one in judged], p_a, votes)


def write_believed(out: Path, pairs: Sequence[JudgedPair], believed: Believed) -> None:
    """``believed.parquet``: every pair with the probability that its response a is better (null where nobody said
    anything), how many signed votes say so, and its gold label."""
    number: Mapping[str, int] = dict(
        zip(believed.reliability.pairs["pair"], believed.reliability.pairs["votes"].tolist(), strict=True)
    )
    rows = [
        {
            "pair_id": pair.pair_id,
            "p_a": believed.p_a.get(pair.pair_id),
            "votes": number.get(pair.pair_id, 0),
            "gold": {1: "a", -1: "b"}.get(pair.gold or 0),
        }
        for pair in pairs
    ]
    write_table(out, rows, BELIEVED, fingerprint({"pairs": [pair.pair_id for pair in pairs]}))
