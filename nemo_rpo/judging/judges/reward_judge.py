"""Reward and preference models of this package as judges: one evaluation of all pairs, on the ranks that they need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nemo_rpo.data.layouts.every import SYSTEM, TEMPLATE_KWARGS, TOOLS
from nemo_rpo.judging.judges.engine_runs import evaluated_margins, verdicts_by_margin
from nemo_rpo.judging.judging_settings import RewardJudge
from nemo_rpo.judging.verdicts import Judge, Shown, Verdict

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
        items, tie = list(shown), self.settings.tie
        if items:
            yield from verdicts_by_margin(self.name, items, lambda: self._margins(items), tie, False, _LEFT_OUT)

    def _margins(self, items: list[Shown]) -> list[float | None]:
        """Of each pair, first over second; None where the model cannot score it."""
        rows = []
        for item in items:
            given = {name: item.fields[name] for name in _GIVEN if item.fields.get(name) is not None}
            row = {"pair_id": item.pair, "prompt": item.prompt, "votes": [{"annotator": "j", "vote": "a"}]}
            rows.append(row | {"response_a": item.first, "response_b": item.second} | given)
        margins = evaluated_margins(self.settings, rows, (), self.log, self.where)
        return [margins.get(item.pair) for item in items]
