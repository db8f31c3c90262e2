"""Prompts and answers in the JSON layouts of AlpacaEval and Arena-Hard, whose judges take it from there.

``alpaca_eval``: prompts are a JSON list (or JSONL) of ``{"instruction", "dataset", …}``; answers a JSON list of
``{"dataset", "instruction", "output", "generator"}`` (https://github.com/tatsu-lab/alpaca_eval).

``arena_hard``: prompts are JSONL of ``{"question_id", "category", "turns": [{"content"}]}``; answers JSONL of
``{"question_id", "answer_id", "model_id", "choices": [{"index", "turns": [{"content"}]}], "tstamp"}``, to be put into
``data/arena-hard-v0.1/model_answer/MODEL.jsonl`` (https://github.com/lmarena/arena-hard-auto).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.read import read_records
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import ConfigError, DataError, RowError


@dataclass(frozen=True)
class Question:
    """What the user says, turn by turn, and the fields of the row it came from."""

    turns: list[str]
    fields: dict[str, Any]


def read_questions(path: Path, layout: str) -> list[Question]:
    """Raises :class:`DataError` with the row that is not of that layout."""
    found = []
    for row, fields in _rows(path):
        found.append(_question(str(path), row, fields, layout))
    return found


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Of a JSON list, or of whatever :func:`read_records` reads."""
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as exc:
            raise DataError(f"{path} is no JSON ({exc})") from exc
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path} is no JSON list of objects")
        return list(enumerate(rows, start=1))
    found = []
    for record in read_records(path):
        if isinstance(record, DataError):
            raise record
        found.append((record.row, record.fields))
    return found


def _question(file: str, row: int, fields: dict[str, Any], layout: str) -> Question:
    if layout == "alpaca_eval":
        if not isinstance(fields.get("instruction"), str):
            raise RowError(file, row, "no text in 'instruction'; AlpacaEval's prompts have one")
        return Question([fields["instruction"]], fields)
    turns = fields.get("turns")
    contents = [turn.get("content") if isinstance(turn, dict) else None for turn in turns or []]
    if "question_id" not in fields or not contents or not all(isinstance(text, str) for text in contents):
        raise RowError(file, row, "no 'question_id' with 'turns' of text; Arena-Hard's questions have them")
    return Question(contents, fields)


def write_answers(
    out: Path, layout: str, questions: Sequence[Question], answers: Sequence[Sequence[str]], name: str
) -> None:
    """One answer a turn of each question, whole or not at all; :class:`ConfigError` if ``out`` cannot be written."""
    pairs = zip(questions, answers, strict=True)
    if layout == "alpaca_eval":
        rows = [
            {
                "dataset": question.fields.get("dataset", "helpful_base"),
                "instruction": question.turns[0],
                "output": said[0],
                "generator": name,
            }
            for question, said in pairs
        ]
        text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    else:
        text = "".join(json.dumps(_arena_hard(q, said, name), ensure_ascii=False) + "\n" for q, said in pairs)
    with whole_file(out, ConfigError, "name another place") as writing:
        writing.write_text(text, encoding="utf-8")


def _arena_hard(question: Question, said: Sequence[str], name: str) -> dict[str, Any]:
    turns = [{"content": text} for text in said]
    digest = hashlib.blake2b(json.dumps([name, question.fields["question_id"], turns]).encode(), digest_size=11)
    return {
        "question_id": question.fields["question_id"],
        "answer_id": digest.hexdigest(),
        "model_id": name,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": time.time(),
    }
