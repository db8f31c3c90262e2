"""Commands of this package that need the engine, in a process of their own: it starts ranks, and a judge has none."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.stage import read_table
from nemo_rpo.errors import ConfigError
from nemo_rpo.judging.judging_settings import GenerativeJudge, RewardJudge
from nemo_rpo.judging.verdicts import FIRST, SECOND, TIE, Shown, Verdict

_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def engine_table(
    command: Sequence[str], rows: Sequence[Mapping[str, Any]], options: Sequence[str], log: Path, where: str
) -> list[dict[str, Any]]:
    """The rows of the Parquet file that ``nemo-rpo`` makes of ``rows``.

    Args:
        command: words, in which ``{data}`` and ``{out}`` stand for the two files.
        options: settings and options of the user's, behind it.
        log: file that its output is appended to.
        where: the setting that a failure is blamed on.

    Raises:
        ConfigError: it failed; with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "data.jsonl"), Path(folder, "out.parquet")
        with data.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        named = {"{data}": str(data), "{out}": str(out)}
        words = [sys.executable, "-m", "nemo_rpo.cli", *(named.get(word, word) for word in command), *options]
        environment = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
        with log.open("ab") as said:
            status = subprocess.run(words, stdout=said, stderr=said, env=environment).returncode
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ConfigError(
                f"{where}: it cannot judge ({lines[-1] if lines else 'without a word'}); its log is {log}"
            )
        return read_table(out)[0]


def verdicts_by_margin(
    judge: str,
    items: Sequence[Shown],
    margins: Callable[[], Sequence[float | None]],
    tie: float,
    ordered: bool,
    why: str,
) -> Iterator[Verdict]:
    """Verdicts of one evaluation of all ``items``: P(first) = σ(margin), a tie where |margin| is ``tie`` or less.

    Args:
        judge: its name.
        margins: evaluates; one for each item, None of those that the model cannot score, for the reason ``why``.
        ordered: whether the order shown means anything to the judge.
    """
    start = time.monotonic()
    found = margins()
    latency = (time.monotonic() - start) / len(items)
    for item, margin in zip(items, found, strict=True):
        first = item.shown_first if ordered else ""
        if margin is None:
            yield Verdict(item.pair, judge, first, None, None, "", latency, time.time(), why)
            continue
        said = TIE if abs(margin) <= tie else FIRST if margin > 0 else SECOND
        raw, p = json.dumps({"margin": margin}), 1 / (1 + math.exp(-max(-700.0, min(700.0, margin))))
        yield Verdict(item.pair, judge, first, said, p, raw, latency, time.time())


def evaluated_margins(
    settings: RewardJudge | GenerativeJudge, rows: list[dict[str, Any]], link: Sequence[str], log: Path, where: str
) -> dict[str, float]:
    """By ``pair_id``, of the rows that the judge's run can score; ``link``: overrides that say what a margin is."""
    s = settings
    command = ["evaluate", s.run, "{data}", "--layout", "votes", "--scores", "{out}", "--bootstrap", "1", *link]
    options = [*s.overrides]
    options += ["--config", s.config] if s.config else []
    options += ["--nproc-per-node", str(s.nproc_per_node)] if s.nproc_per_node else []
    scores = engine_table(command, rows, options, log, f"{where}.run")
    return {row["pair_id"]: row["sign"] * row["delta"] for row in scores}
