"""Reward and preference models of this package as judges: one evaluation of all pairs, on the ranks that they need."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nemo_rpo.data.layouts.every import SYSTEM, TEMPLATE_KWARGS, TOOLS
from nemo_rpo.judging.judges.engine_runs import engine_table
from nemo_rpo.judging.judging_settings import RewardJudge
from nemo_rpo.judging.verdicts import FIRST, SECOND, TIE, Judge, Shown, Verdict

_GIVEN = (SYSTEM, TOOLS, TEMPLATE_KWARGS)
_LEFT_OUT = "the model cannot score the pair (too long, empty, or two equal responses)"


class RewardModelJudge(Judge):
    """A :class:`nemo_rpo.judging.verdicts.Judge`: σ(Δ) of the model's margin Δ. Order means nothing to it.

    Args:
        settings: checked.
        log: file for the output of the evaluation.
        where: what the settings are called in messages.
    """

    orders = "none"

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

    def _margins(self, items: list[Shown]) -> dict[str, float]:
        """Of the pairs that the model can score, first over second."""
        rows = []
        for item in items:
            given = {name: item.fields[name] for name in _GIVEN if item.fields.get(name) is not None}
            row = {"pair_id": item.pair, "prompt": item.prompt, "votes": [{"annotator": "j", "vote": "a"}]}
            rows.append(row | {"response_a": item.first, "response_b": item.second} | given)
        s = self.settings
        command = ["evaluate", s.run, "{data}", "--layout", "votes", "--scores", "{out}", "--bootstrap", "1"]
        options = [*s.overrides]
        options += ["--config", s.config] if s.config else []
        options += ["--nproc-per-node", str(s.nproc_per_node)] if s.nproc_per_node else []
        scores = engine_table(command, rows, options, self.log, f"{self.where}.run")
        return {row["pair_id"]: row["sign"] * row["delta"] for row in scores}
