"""The judges' verdicts on a round's pairs and anchors, and what is believed of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.stage import fingerprint, read_table, write_table
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.data.files.write import write_csv
from nemo_rpo.errors import ConfigError
from nemo_rpo.judging.belief import BELIEVED, Believed, believe
from nemo_rpo.judging.collecting import Judged, collect, judges_from
from nemo_rpo.judging.judged_pairs import JudgedPair, write_votes
from nemo_rpo.judging.judging_settings import JudgeSettings
from nemo_rpo.judging.wording import as_rows, switched_off
from nemo_rpo.rounds.rounds_settings import AnchorSettings, Plan
from nemo_rpo.rounds.training_rows import best_against_worst, prompt_of, rates, write_believed_rows
from nemo_rpo.shares import share

TABLE, FACTS, ANNOTATORS, JUDGES = "believed.parquet", "believed.json", "annotators.csv", "judges.csv"
TRAIN, VALIDATION = "train.jsonl", "validation.jsonl"
SOFT_TRAIN, SOFT_VALIDATION = "train_believed.jsonl", "validation_believed.jsonl"


@dataclass(frozen=True)
class RoundBelief:
    """What a round believes.

    Attributes:
        facts: of ``believed.json``: ``anchors`` (``right``, ``low``, ``high``, ``anchors``; None without enough of
            them), ``warnings``, ``switched_off``, ``pairs``, ``verdicts``.
        p_a: by pair, the probability that its response a is better.
        judged: what the judges said of the round's pairs and anchors.
        inputs: the fingerprint of all that it follows from.
    """

    facts: dict[str, Any]
    p_a: dict[str, float]
    judged: list[Judged]
    inputs: str


def ask_judges(
    plan: Plan, blocks: Sequence[JudgeSettings], pairs: Sequence[JudgedPair], folder: Path, everybody: bool = False
) -> list[Judged]:
    """All verdicts on ``pairs``, kept in ``folder`` as they come; ``everybody``: each judge is asked about each pair.

    Their times are left out of what is believed: in a round nobody changes, and a kill must change nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = replace(plan.judging, judges_a_pair=None) if everybody else plan.judging
    judged = collect(judges_from(blocks, folder), pairs, folder, settings)
    return [replace(one, verdicts=[replace(verdict, time=0.0) for verdict in one.verdicts]) for one in judged]


def together(first: Sequence[Judged], second: Sequence[Judged]) -> list[Judged]:
    """What the same judges said of two sets of pairs."""
    return [
        replace(one, verdicts=[*one.verdicts, *other.verdicts], off=one.off or other.off)
        for one, other in zip(first, second, strict=True)
    ]


def believe_round(
    plan: Plan, folder: Path, pairs: Sequence[JudgedPair], held_out: set[str], anchors: Sequence[JudgedPair]
) -> RoundBelief:
    """Asks the judges, fits the label model, and writes what the round trains on; ``held_out`` are keys of prompts.

    ``believed.parquet`` comes last: where it is there, everything before it is too.

    Raises:
        ConfigError: no judge is left, or the file there was made of other inputs. ServerError: verdicts are missing.
    """
    judged = ask_judges(plan, plan.judges, pairs, folder)
    if anchors:
        judged = together(judged, ask_judges(plan, plan.judges, anchors, folder / "anchors", everybody=True))
    if not plan.online.anchors.evidence:
        tested, anchors = list(anchors), [replace(pair, gold=None) for pair in anchors]
    else:
        tested = []
    inputs = fingerprint(
        {
            "pairs": [[pair.pair_id, pair.prompt, pair.a, pair.b, pair.gold] for pair in (*pairs, *anchors)],
            "verdicts": [
                [one.name, one.family, one.off, [[v.pair, v.shown_first, v.said, v.p_first] for v in one.verdicts]]
                for one in judged
            ],
            "held out": sorted(held_out),
            "chosen": plan.online.pairs == "best_worst",
            "tested": [[pair.pair_id, pair.gold] for pair in tested],
        }
    )
    if (folder / TABLE).exists():
        rows, made_of = read_table(folder / TABLE)
        if made_of != inputs:
            raise ConfigError(f"{folder / TABLE} was made of other pairs or verdicts; delete {folder} to do it again")
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return RoundBelief(
            facts, {row["pair_id"]: row["p_a"] for row in rows if row["p_a"] is not None}, judged, inputs
        )
    believed = believe([*pairs, *anchors], judged)
    p_a = {pair: round(p, 12) for pair, p in believed.p_a.items()}
    facts = _facts(believed, pairs, tested, plan.online.anchors)
    _write_rows(plan, folder, pairs, held_out, anchors, replace(believed, p_a=p_a))
    write_csv(folder / ANNOTATORS, [asdict(row) for row in believed.reliability.annotators])
    write_csv(folder / JUDGES, as_rows(believed))
    with whole_file(folder / FACTS, ConfigError, "make room and run the same command again") as writing:
        writing.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    number = dict(zip(believed.reliability.pairs["pair"], believed.reliability.pairs["votes"].tolist(), strict=True))
    rows = [
        {
            "pair_id": pair.pair_id,
            "p_a": p_a.get(pair.pair_id),
            "votes": number.get(pair.pair_id, 0),
            "gold": {1: "a", -1: "b"}.get(pair.gold or 0),
        }
        for pair in (*pairs, *anchors)
    ]
    write_table(folder / TABLE, rows, BELIEVED, inputs)
    return RoundBelief(facts, p_a, judged, inputs)


def _write_rows(
    plan: Plan,
    folder: Path,
    pairs: Sequence[JudgedPair],
    held_out: set[str],
    anchors: Sequence[JudgedPair],
    believed: Believed,
) -> None:
    """Votes, and what is believed of them where a fit takes that; anchors that are evidence are trained on too."""
    apart = {True: [], False: []}
    for pair in pairs:
        apart[prompt_of(pair) in held_out].append(pair)
    chosen = plan.online.pairs == "best_worst"
    known = list(anchors) if plan.online.anchors.evidence else []
    for of_held_out, votes_file, soft_file in ((False, TRAIN, SOFT_TRAIN), (True, VALIDATION, SOFT_VALIDATION)):
        of_split = apart[of_held_out]
        kept = best_against_worst(of_split, believed.p_a) if chosen else of_split
        write_votes(folder / votes_file, [*kept, *([] if of_held_out else known)], believed.votes)
        if any(fit.labels == "believed" and fit.opponent == "self" for fit in plan.fits):
            places = {pair.pair_id: i for i, pair in enumerate(of_split)}
            every = rates(of_split, believed.p_a)
            index = [places[pair.pair_id] for pair in kept]
            write_believed_rows(folder / soft_file, kept, believed.p_a, type(every)(*(of[index] for of in every)))


def _facts(
    believed: Believed, pairs: Sequence[JudgedPair], tested: Sequence[JudgedPair], settings: AnchorSettings
) -> dict[str, Any]:
    result = believed.reliability
    if tested:
        right = sum(0.5 if believed.p_a.get(p.pair_id, 0.5) == 0.5 else _is_right(believed, p) for p in tested)
        found = share(right, len(tested))
        anchors = {"right": found.value, "low": found.low, "high": found.high, "anchors": found.n, "estimate": "votes"}
    else:
        one = next((estimate for estimate in result.estimates if estimate.recommended), None)
        anchors = None
        if settings.path is not None and one is not None and one.right is not None:
            anchors = {"right": one.right, "low": one.low, "high": one.high, "anchors": one.anchors}
            anchors["estimate"] = one.name
    return {
        "pairs": len(pairs),
        "verdicts": sum(habits.verdicts for habits in believed.habits),
        "anchors": anchors,
        "switched_off": list(switched_off(believed)),
        "warnings": [asdict(warning) for warning in result.warnings],
    }


def _is_right(believed: Believed, pair: JudgedPair) -> bool:
    return (believed.p_a[pair.pair_id] > 0.5) == (pair.gold == 1)
