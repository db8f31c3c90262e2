"""A cheap judge in the place of an expensive one: properties of answers, weighed by a few pairs that it has judged.

Of pairs that it learnt from, its verdict comes from a fit to other judged pairs (of other prompts, where there are
several), so that as one more annotator it repeats nobody's label. Source: Thakur et al., "MIRAGE-Bench" (2410.13716),
whose surrogate foretells strengths of models; this one foretells single verdicts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.crowd.factors.answer_features import declared, features
from nemo_rpo.crowd.factors.held_out import Foretold, foretell
from nemo_rpo.crowd.factors.linear_bt import sigmoid
from nemo_rpo.data.files.stage import fingerprint
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.judging.judged_pairs import JudgedPair, pairs_to_judge
from nemo_rpo.judging.judges.chat_prompts import plain
from nemo_rpo.judging.judging_settings import SurrogateJudge
from nemo_rpo.judging.verdicts import FIRST, SECOND, TIE, Judge, Shown, Verdict

log = logging.getLogger(__name__)
_Pair = tuple[str, str, str]  # prompt, first, second


class Surrogate(Judge):
    """See :class:`nemo_rpo.judging.verdicts.Judge`. Order means nothing to it.

    Args:
        settings: checked.
        where: what the settings are called in messages.

    Raises:
        ConfigError: the judged pairs cannot be read, are too few, or say nothing.
    """

    orders = "none"

    def __init__(self, settings: SurrogateJudge, where: str) -> None:
        self.settings, self.name, self.family = settings, settings.name, settings.family
        try:
            pairs, _ = pairs_to_judge([Path(settings.judged)])
        except DataError as exc:
            raise ConfigError(f"{where}.judged: {exc}") from exc
        labelled = [(pair, share) for pair in pairs if (share := self._share(pair)) is not None]
        if len(labelled) < settings.fewest:
            by = f" by {settings.by}" if settings.by else ""
            raise ConfigError(
                f"{where}.judged: {settings.judged} has {len(labelled)} pairs judged{by}, and a surrogate takes "
                f"{settings.fewest} ({where}.fewest)"
            )
        self._fit, self._held_out = self._learn(labelled, where)
        self._content = fingerprint({"pairs": [[plain(p.prompt), plain(p.a), plain(p.b), s] for p, s in labelled]})

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        return {**self.settings.outcome(), "judged": self._content}

    def judge(self, shown: Iterable[Shown]) -> Iterator[Verdict]:
        """See :class:`nemo_rpo.judging.verdicts.Judge`; ``raw`` says what the log-odds are and whether the pair was
        among the judged ones.
        """
        for item in shown:
            key = (plain(item.prompt), plain(item.first), plain(item.second))
            log_odds = self._held_out.get(key)
            learnt_from = log_odds is not None
            if log_odds is None:
                x = self._difference(item.prompt, item.first, item.second, item.fields, f"pair {item.pair}")
                log_odds = float(self._fit.of(x[None])[0])
            said = TIE if abs(log_odds) <= self.settings.tie else FIRST if log_odds > 0 else SECOND
            raw = json.dumps({"log_odds": round(log_odds, 6), "held_out": learnt_from})
            p = float(sigmoid(np.float64(log_odds)))
            yield Verdict(item.pair, self.name, item.shown_first, said, p, raw, 0.0, time.time())

    def _share(self, pair: JudgedPair) -> float | None:
        """Of labels for a; None without any."""
        said = [vote.sign for vote in pair.votes if self.settings.by in (None, vote.annotator)]
        return (1 + sum(said) / len(said)) / 2 if said else None

    def _learn(self, labelled: Sequence[tuple[JudgedPair, float]], where: str) -> tuple[Foretold, dict[_Pair, float]]:
        pairs = [pair for pair, _ in labelled]
        x = np.array([self._difference(p.prompt, p.a, p.b, p.fields, f"pair {p.pair_id}") for p in pairs])
        share = np.array([share for _, share in labelled])
        prompts: dict[str, int] = {}
        of_prompt = np.array([prompts.setdefault(plain(p.prompt), len(prompts)) for p in pairs])
        groups = of_prompt if len(prompts) >= 3 else np.arange(len(pairs))
        if not np.abs(x).max(initial=0.0) or not np.abs(share - 0.5).max():
            raise ConfigError(f"{where}.judged: the judged pairs do not differ in any property, or all are ties")
        fit = foretell(x, share, groups)
        named = zip([*self.settings.features, *self.settings.columns], fit.theta.tolist(), strict=True)
        log.info("%s weighs %s", self.name, ", ".join(f"{name} {weight:+.2f}" for name, weight in named))
        held_out: dict[_Pair, float] = {}
        for pair, odds in zip(pairs, fit.log_odds.tolist(), strict=True):
            prompt, a, b = plain(pair.prompt), plain(pair.a), plain(pair.b)
            held_out[prompt, a, b], held_out[prompt, b, a] = odds, -odds
        return fit, held_out

    def _difference(self, prompt: Any, first: Any, second: Any, fields: Any, where: str) -> np.ndarray:
        names, columns = self.settings.features, self.settings.columns
        apart = features(prompt, first, names) - features(prompt, second, names)
        try:
            return np.concatenate((apart, declared(fields, first, columns, where)))
        except DataError as exc:
            raise ConfigError(f"judge {self.name}: {exc}") from exc
