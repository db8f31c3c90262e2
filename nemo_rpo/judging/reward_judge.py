"""Reward and preference models of this package as judges: one evaluation of all pairs, on the ranks that they need."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.stage import read_table
from nemo_rpo.errors import ConfigError
from nemo_rpo.judging.judging_settings import RewardJudge
from nemo_rpo.judging.verdicts import FIRST, SECOND, TIE, Shown, Verdict

_LEFT_OUT = "the model cannot score the pair (too long, empty, or two equal responses)"


class RewardModelJudge:
    """A :class:`nemo_rpo.judging.verdicts.Judge`: σ(Δ) of the model's margin Δ. Order means nothing to it.

    Args:
        settings: checked.
        log: file for the output of the evaluation.
        where: what the settings are called in messages.
    """

    orders, tried = "none", False

    def __init__(self, settings: RewardJudge, log: Path, where: str) -> None:
        self.settings, self.log, self.where = settings, log, where
        self.name, self.family = settings.name, settings.family

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        return self.settings.outcome()

    def judge(self, shown: Iterable[Shown]) -> Iterator[Verdict]:
        """See :class:`nemo_rpo.judging.verdicts.Judge`.

        Raises:
            ConfigError: the evaluation failed; with its last line.
        """
        items, start = list(shown), time.monotonic()
        if not items:
            return
        margins = self._margins(items)
        latency = (time.monotonic() - start) / len(items)
        for item in items:
            margin = margins.get(item.pair)
            if margin is None:
                yield Verdict(item.pair, self.name, "", None, None, "", latency, time.time(), _LEFT_OUT)
                continue
            said = TIE if abs(margin) <= self.settings.tie else FIRST if margin > 0 else SECOND
            raw, p = json.dumps({"margin": margin}), 1 / (1 + math.exp(-max(-700.0, min(700.0, margin))))
            yield Verdict(item.pair, self.name, "", said, p, raw, latency, time.time())

    def close(self) -> None:
        """Nothing is left running."""

    def _margins(self, items: list[Shown]) -> dict[str, float]:
        """Of the pairs that the model can score, first over second."""
        with tempfile.TemporaryDirectory() as folder:
            pairs, scores = Path(folder, "pairs.jsonl"), Path(folder, "scores.parquet")
            with pairs.open("w", encoding="ascii") as file:
                for item in items:
                    row = {"pair_id": item.pair, "prompt": item.prompt, "votes": [{"annotator": "j", "vote": "a"}]}
                    file.write(json.dumps({**row, "response_a": item.first, "response_b": item.second}) + "\n")
            self._evaluate(pairs, scores)
            rows, _ = read_table(scores)
        return {row["pair_id"]: row["sign"] * row["delta"] for row in rows}

    def _evaluate(self, pairs: Path, scores: Path) -> None:
        s = self.settings
        command = [sys.executable, "-m", "nemo_rpo.cli", "evaluate", s.run, str(pairs), *s.overrides]
        command += ["--layout", "votes", "--scores", str(scores), "--bootstrap", "1"]
        command += ["--config", s.config] if s.config else []
        command += ["--nproc-per-node", str(s.nproc_per_node)] if s.nproc_per_node else []
        own = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # the evaluation has ranks of its own
        environment = {name: value for name, value in os.environ.items() if name not in own}
        with self.log.open("ab") as log:
            status = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
        if status:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = lines[-1] if lines else "without a word"
            raise ConfigError(f"{self.where}.run: {s.run} cannot judge ({said}); the log is {self.log}")
