"""``nemo-rpo convert --pairs-from-scores``: rows with several scored responses as pairs.

A row has a ``prompt``, ``responses`` (texts or messages, or objects with a ``response`` or ``text`` and scores of their
own), and for each score a list of one value a response, in a field of its name or in an object ``scores``. Files are
read twice: once for the scores alone, which a quantile needs all of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.conversion import WRITERS, Converted
from nemo_rpo.conversion.layouts import records_of
from nemo_rpo.conversion.merged import MergedPair
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Paths, Record, as_paths, read_records
from nemo_rpo.data.files.write import record_writer
from nemo_rpo.data.layouts.column_names import renamed
from nemo_rpo.data.rows import Text, Vote
from nemo_rpo.errors import ConfigError, DataError, RowError
from nemo_rpo.judging.judges.program_judge import by_pass_rates
from nemo_rpo.judging.rewards import all_good_by_prompt, harmonic
from nemo_rpo.judging.score_rule import ScoreRule
from nemo_rpo.judging.verdicts import TIE

_TEXTS = ("response", "text", "content", "completion", "answer")  # what an object calls its response
_NO_SCORE = "responses without a score"
_TOO_FEW = "rows with fewer than two scored responses"
_SAME = "pairs of responses that are the same"


def convert_scores(
    paths: Paths, to: str, out: Path, rule: ScoreRule, keys: RowFormat | None = None, overwrite: bool = False
) -> Converted:
    """Writes the pairs of ``paths`` to ``out`` in the layout ``to``, each with one vote by an annotator called as the
    rule, and what the rule compared as ``chosen_reward`` and ``rejected_reward``. What is dropped is counted.

    Raises:
        DataError: the first row that cannot be read; nothing comes out. ConfigError: ``rule``, ``to`` or ``out``.
    """
    rule.check()
    if to not in WRITERS:
        raise ConfigError(f"--to is '{to}'; with --pairs-from-scores it can be {', '.join(WRITERS)}")
    keys, checked = keys or RowFormat(), as_paths(paths, setting="the path", folders=True)
    values = _values(checked, keys, rule)
    done = Converted(0, 0)
    with record_writer(out, overwrite) as write:
        for record, value in zip(_records(checked, keys), values, strict=True):
            done.rows += 1
            for pair in _pairs(record, value, rule, keys, done.lost):
                done.pairs += 1
                for fields in records_of(pair, to, done.lost):
                    write(fields)
                    done.written += 1
        if not done.written:
            raise DataError(f"no pair comes out of {done.rows:,} rows: {_why(done.lost)}")
    return done


def _values(paths: list[Path], keys: RowFormat, rule: ScoreRule) -> list[np.ndarray]:
    """What the rule compares, a value a response, of every row; NaN without one of its scores."""
    scores = [_scores(record, rule.scores) for record in _records(paths, keys)]
    if not scores:
        return []
    whole = np.concatenate(scores, 1)
    known = ~np.isnan(whole).any(0)
    value = np.full(whole.shape[1], np.nan)
    if known.any():
        row = np.repeat(np.arange(len(scores)), [part.shape[1] for part in scores])[known]
        value[known] = _combined(whole[:, known], row, rule)
    return np.split(value, np.cumsum([part.shape[1] for part in scores])[:-1])


def _combined(scores: np.ndarray, row: np.ndarray, rule: ScoreRule) -> np.ndarray:
    if rule.rule == "harmonic":
        return harmonic(scores, rule.weights)
    return all_good_by_prompt(scores, row, rule.quantile) if rule.rule == "all_good" else scores[0]


def _pairs(record: Record, value: np.ndarray, rule: ScoreRule, keys: RowFormat, lost: Counter) -> Iterator[MergedPair]:
    responses = [_text(record, item) for item in record.fields["responses"]]
    lost[_NO_SCORE] += int(np.isnan(value).sum())
    there = np.flatnonzero(~np.isnan(value))
    if len(there) < 2:
        lost[_TOO_FEW] += 1
        return
    if rule.pick == "extremes":
        chosen = [(int(there[value[there].argmax()]), int(there[value[there].argmin()]))]
    else:
        chosen = list(combinations(there.tolist(), 2))
    pair_id = record.fields.get(keys.pair_id_key)
    for i, j in chosen:
        if value[i] < value[j]:
            i, j = j, i
        if not _told_apart(value[i], value[j], rule):
            lost[f"pairs that {rule.rule} does not tell apart"] += 1
        elif responses[i] == responses[j]:
            lost[_SAME] += 1
        else:
            yield MergedPair(
                where=f"{record.file}:{record.row}",
                pair_id=None if pair_id is None else f"{pair_id}:{i}:{j}",
                prompt=_prompt(record),
                first=responses[i],
                second=responses[j],
                votes=[Vote(rule.rule, 1)],
                gold=None,
                topic=None,
                columns={"chosen_reward": float(value[i]), "rejected_reward": float(value[j])},
            )


def _told_apart(high: float, low: float, rule: ScoreRule) -> bool:
    if rule.rule == "pass_rate":
        return by_pass_rates(high, low, rule.best, rule.gap) != TIE
    return high - low > rule.margin


def _records(paths: list[Path], keys: RowFormat) -> Iterator[Record]:
    for path in paths:
        records = renamed(read_records(path), keys.columns, path) if keys.columns else read_records(path)
        for record in records:
            if isinstance(record, DataError):
                raise record
            responses = record.fields.get("responses")
            if not isinstance(responses, list):
                problem = "a row needs prompt and responses, a list; other names: --columns responses=NAME"
                raise RowError(record.file, record.row, problem, "no_responses")
            yield record


def _scores(record: Record, names: list[str]) -> np.ndarray:
    """float64 [r, n]; NaN where a response has none."""
    responses, inside = record.fields["responses"], record.fields.get("scores")
    found = np.full((len(names), len(responses)), np.nan)
    for i, name in enumerate(names):
        values = record.fields.get(name)
        if values is None and isinstance(inside, Mapping):
            values = inside.get(name)
        if values is None and all(isinstance(item, Mapping) for item in responses):
            values = [item.get(name) for item in responses]
            values = None if all(value is None for value in values) else values
        if not isinstance(values, list) or len(values) != len(responses):
            problem = f"score '{name}' must be a list of {len(responses)} values, one a response (--scores)"
            raise RowError(record.file, record.row, problem, "bad_score")
        for j, value in enumerate(values):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise RowError(record.file, record.row, f"score '{name}' is {value!r}, no finite number", "bad_score")
            found[i, j] = value
    return found


def _text(record: Record, item: Any) -> Text:
    if isinstance(item, Mapping):
        item = next((item[name] for name in _TEXTS if item.get(name)), None)
    if (isinstance(item, str) and item) or (isinstance(item, list) and item and isinstance(item[0], Mapping)):
        return item
    problem = f"a response must be a text, messages, or an object with one of {', '.join(_TEXTS)}"
    raise RowError(record.file, record.row, problem, "bad_response")


def _prompt(record: Record) -> Text:
    prompt = record.fields.get("prompt")
    if not isinstance(prompt, str | list) or not prompt:
        raise RowError(record.file, record.row, "a row needs a prompt, a text or messages", "no_prompt")
    return prompt


def _why(lost: Counter) -> str:
    return ", ".join(f"{what}: {count:,}" for what, count in lost.items() if count) or "there is none"
