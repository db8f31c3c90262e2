"""Language models of this package as judges, run by the engine: the probabilities of their two verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nemo_rpo.data.layouts.every import SYSTEM
from nemo_rpo.judging.judges.chat_prompts import ChatPrompt
from nemo_rpo.judging.judges.engine_runs import evaluated_margins, verdicts_by_margin
from nemo_rpo.judging.judging_settings import GenerativeJudge
from nemo_rpo.judging.verdicts import Judge, Shown, Verdict

# Under this loss the margin of a row is log π(first) - log π(second), whatever the run was trained with: a verdict that
# is taken for certain (win_rate 1), no reference, no previous iterate.
_LINK = (
    "~model.rpo.loss_options",
    "model.rpo.base_loss=genrm",
    "model.dpo.ref_policy_kl_penalty=null",
    "model.rpo.enabled=false",
    "model.rpo.reference_from=null",
    "model.rpo.previous_iterate=null",
)
_LEFT_OUT = "the model cannot score the pair (too long for it)"


class EngineJudge(Judge):
    """A :class:`nemo_rpo.judging.verdicts.Judge`: p_first = σ(log π(first word) - log π(second word)).

    One evaluation of all pairs, on the ranks that the layout needs: no export, no server.

    Args:
        settings: checked.
        log: file for the output of the evaluation.
        where: what the settings are called in messages.
    """

    def __init__(self, settings: GenerativeJudge, log: Path, where: str) -> None:
        self.settings, self.log, self.where = settings, log, where
        self.name, self.family, self.orders = settings.name, settings.family, settings.orders
        self.prompt = ChatPrompt(settings)

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        return {**self.settings.outcome(), "prompt": self.prompt.source}

    def judge(self, shown: Iterable[Shown]) -> Iterator[Verdict]:
        """See :class:`nemo_rpo.judging.verdicts.Judge`.

        Raises:
            ConfigError: the evaluation failed; with its last line.
        """
        items = list(shown)
        if items:
            yield from verdicts_by_margin(self.name, items, lambda: self._margins(items), 0.0, True, _LEFT_OUT)

    def _margins(self, items: list[Shown]) -> list[float | None]:
        """Of each item; None where the model cannot score it."""
        s = self.settings
        words = {"response_a": s.words["first"], "response_b": s.words["second"], "win_rate": 1.0}
        words |= {"votes": [{"annotator": "j", "vote": "a"}]} | ({SYSTEM: s.system} if s.system else {})
        rows = [{"pair_id": str(i), "prompt": self.prompt.text(item), **words} for i, item in enumerate(items)]
        margins = evaluated_margins(s, rows, _LINK, self.log, self.where)
        return [margins.get(row["pair_id"]) for row in rows]
