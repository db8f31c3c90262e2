"""All verdicts of some judges on some pairs, each kept as it comes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from nemo_rpo.data.files.stage import Stage, fingerprint, write_table
from nemo_rpo.data.rows import Vote
from nemo_rpo.errors import ConfigError
from nemo_rpo.judging.judged_pairs import JudgedPair
from nemo_rpo.judging.judges.chat_judge import LanguageModelJudge
from nemo_rpo.judging.judges.combined_judge import CombinedRewards
from nemo_rpo.judging.judges.generative_judge import EngineJudge
from nemo_rpo.judging.judges.program_judge import CodedJudge
from nemo_rpo.judging.judges.reward_judge import RewardModelJudge
from nemo_rpo.judging.judges.surrogate_judge import Surrogate
from nemo_rpo.judging.judging_settings import (
    ChatJudge,
    CombinedJudge,
    GenerativeJudge,
    JudgeSettings,
    JudgingSettings,
    ProgramJudge,
    SurrogateJudge,
)
from nemo_rpo.judging.orders import asked_about, shown, votes_of
from nemo_rpo.judging.verdicts import COLUMNS, KEYS, Judge, Verdict
from nemo_rpo.serving.progress import counted

log = logging.getLogger(__name__)
FOLDER, TABLE = "verdicts", "verdicts.parquet"


@dataclass(frozen=True)
class Judged:
    """What one judge said.

    Attributes:
        name, family, orders: of the judge.
        verdicts: all of them, in the order of the pairs.
        off: why the judge is switched off; empty otherwise.
    """

    name: str
    family: str | None
    orders: str
    verdicts: list[Verdict]
    off: str = ""

    def votes(self) -> dict[str, Vote]:
        """By pair; none of a judge that is switched off."""
        return {} if self.off else dict(votes_of(self.verdicts, self.family))


def judges_from(blocks: Sequence[JudgeSettings], folder: Path, where: str = "judges") -> list[Judge]:
    """The judges; whatever their settings name is looked for now, nobody is asked yet. ``folder`` is for logs."""
    found: list[Judge] = []
    for i, settings in enumerate(blocks):
        place, logs = f"{where}[{i}]", folder / f"{quote(settings.name, safe='')}.log"
        if isinstance(settings, ChatJudge):
            found.append(LanguageModelJudge(settings, logs, place))
        elif isinstance(settings, ProgramJudge):
            found.append(CodedJudge(settings, place))
        elif isinstance(settings, GenerativeJudge):
            found.append(EngineJudge(settings, logs, place))
        elif isinstance(settings, CombinedJudge):
            found.append(CombinedRewards(settings, logs, place))
        elif isinstance(settings, SurrogateJudge):
            found.append(Surrogate(settings, place))
        else:
            found.append(RewardModelJudge(settings, logs, place))
    return found


def collect(
    judges: Sequence[Judge], pairs: Sequence[JudgedPair], folder: Path, settings: JudgingSettings
) -> list[Judged]:
    """Asks every judge about every pair; ``folder`` gets a table each in ``verdicts/``, and ``verdicts.parquet``.

    A judge is asked about the first ``settings.trial`` pairs first, and no further where too many of those verdicts
    cannot be read. What is there from an earlier call is not asked again: only a new judge, or a changed one, is.

    Raises:
        ConfigError: an annotator of the pairs has the name of a judge; or what is in ``folder`` is of other pairs.
        ServerError: verdicts are missing; those that are there are kept.
    """
    people = {vote.annotator for pair in pairs for vote in pair.votes}
    for judge in judges:
        if judge.name in people:
            raise ConfigError(f"'{judge.name}' has votes in the file already: call the judge otherwise")
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    content = fingerprint({"pairs": [[p.pair_id, p.prompt, p.a, p.b] for p in pairs], "seed": settings.seed})
    if settings.judges_a_pair is not None:
        content = fingerprint({"pairs": content, "of": sorted(j.name for j in judges), "each": settings.judges_a_pair})
    share = _shares(judges, pairs, settings)
    found = [_one(judge, share[judge.name], folder / FOLDER, settings, content) for judge in judges]
    rows = [verdict.row() for judged in found for verdict in judged.verdicts]
    write_table(folder / TABLE, rows, COLUMNS, fingerprint({"pairs": content, "judges": [j.outcome() for j in judges]}))
    return found


def _shares(
    judges: Sequence[Judge], pairs: Sequence[JudgedPair], settings: JudgingSettings
) -> dict[str, list[JudgedPair]]:
    """The pairs that each judge is asked about."""
    names = [judge.name for judge in judges]
    share: dict[str, list[JudgedPair]] = {name: [] for name in names}
    for pair in pairs:
        for name in asked_about(pair.pair_id, names, settings.judges_a_pair, settings.seed):
            share[name].append(pair)
    return share


def _one(judge: Judge, pairs: Sequence[JudgedPair], folder: Path, settings: JudgingSettings, content: str) -> Judged:
    inputs = fingerprint({"pairs": content, "judge": judge.outcome()})
    stage = Stage(folder / f"{quote(judge.name, safe='')}.parquet", COLUMNS, KEYS, inputs)
    wanted = {
        (item.pair, judge.name, item.shown_first): item
        for item in shown(pairs, judge.name, judge.orders, settings.seed)
    }
    judge.look_at(list(wanted.values()))
    keys = list(wanted)
    if stage.done:  # of a judge that was switched off after the trial, the table ends there
        keys = [key for key in keys if key in stage.rows]
    off = ""
    try:
        for part in (keys[: settings.trial], keys) if judge.tried else (keys,):
            missing = stage.missing(part)
            if missing:
                log.info("%s: %d verdicts", judge.name, len(missing))
                said = judge.judge([wanted[key] for key in missing])
                for verdict in counted(said, len(missing), f"verdicts of {judge.name}"):
                    stage.add(verdict.row())
            if off := _useless([stage.rows[key] for key in part], settings):
                keys = part
                break
    finally:
        stage.close()
        judge.close()
    return Judged(judge.name, judge.family, judge.orders, [Verdict.of(row) for row in stage.finish(keys)], off)


def _useless(rows: list[dict], settings: JudgingSettings) -> str:
    none = [row for row in rows if row["said"] is None]
    if not rows or len(none) <= settings.unparsed * len(rows):
        return ""
    reasons = [row["error"] for row in none if row["error"]]
    example = reasons[0] if reasons else f"it said {none[0]['raw'][:60]!r}"
    return f"{len(none):,} of {len(rows):,} verdicts cannot be read ({example})"
