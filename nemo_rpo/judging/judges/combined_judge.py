"""Several rewards of each response as one judge: see :mod:`nemo_rpo.judging.rewards` for how they are combined."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.data.rows import Text
from nemo_rpo.errors import ConfigError, DataError, first_line
from nemo_rpo.judging.judges.chat_prompts import plain
from nemo_rpo.judging.judges.engine_runs import engine_table
from nemo_rpo.judging.judges.program_judge import scoring_function
from nemo_rpo.judging.judging_settings import CombinedJudge
from nemo_rpo.judging.rewards import all_good_by_prompt, harmonic
from nemo_rpo.judging.verdicts import FIRST, SECOND, TIE, Judge, Shown, Verdict

_Response = tuple[str, str]  # prompt and response


class CombinedRewards(Judge):
    """See :class:`nemo_rpo.judging.verdicts.Judge`. Order means nothing to it; it looks at all responses first, since
    what is good enough for a prompt is a quantile of the rewards of its responses.

    Args:
        settings: checked.
        log: file for the output of reward models.
        where: what the settings are called in messages.
    """

    orders = "none"

    def __init__(self, settings: CombinedJudge, log: Path, where: str) -> None:
        self.settings, self.name, self.family = settings, settings.name, settings.family
        self.log, self.where = log, where
        self._functions = [
            scoring_function(block["call"], f"{where}.rewards[{i}]") if "call" in block else None
            for i, block in enumerate(settings.rewards)
        ]
        self._value: dict[_Response, float] = {}
        self._rewards: dict[_Response, list[float]] = {}

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        return self.settings.outcome()

    def look_at(self, shown: Sequence[Shown]) -> None:
        """Scores every response by every reward, and combines them.

        Raises:
            ConfigError: a reward that is none: an error of its function, or not above 0 for a harmonic mean.
        """
        responses: dict[_Response, tuple[Shown, Text]] = {}
        for item in shown:
            for text in (item.first, item.second):
                responses.setdefault(_key(item.prompt, text), (item, text))
        keys = list(responses)
        rewards = np.array([self._scores(i, responses) for i in range(len(self._functions))])
        self._rewards = dict(zip(keys, rewards.T.tolist(), strict=True))
        try:
            if self.settings.combine == "harmonic":
                value = harmonic(rewards, self.settings.weights)
            else:
                value = self._all_good(keys, rewards)
        except DataError as exc:
            raise ConfigError(f"judge {self.name}: {exc}") from exc
        self._value = dict(zip(keys, value.tolist(), strict=True))

    def judge(self, shown: Iterable[Shown]) -> Iterator[Verdict]:
        """See :class:`nemo_rpo.judging.verdicts.Judge`. Of ``all_good``, p = σ(u_first - u_second): that the first
        is the good one if one of the two is.
        """
        for item in shown:
            keys = [_key(item.prompt, text) for text in (item.first, item.second)]
            gap = self._value[keys[0]] - self._value[keys[1]]
            said = TIE if abs(gap) <= self.settings.margin else FIRST if gap > 0 else SECOND
            p = None if self.settings.combine == "harmonic" else 1 / (1 + math.exp(-max(-700.0, min(700.0, gap))))
            raw = json.dumps([self._rewards[key] for key in keys])
            yield Verdict(item.pair, self.name, item.shown_first, said, p, raw, 0.0, time.time())

    def _scores(self, i: int, responses: Mapping[_Response, tuple[Shown, Text]]) -> list[float]:
        """Of every response, by reward ``i``."""
        place, block = f"{self.where}.rewards[{i}]", self.settings.rewards[i]
        if self._functions[i] is None:
            rows = [
                {"pair_id": str(k), "prompt": s.prompt, "response": t} for k, (s, t) in enumerate(responses.values())
            ]
            command = ["score", "--rewards", block["run"], "--data", "{data}", "--out", "{out}"]
            said = engine_table(command, rows, block.get("overrides") or [], self.log, place)
            of = {row["name"]: row.get("score") for row in said}
            found = [of.get(str(k)) for k in range(len(rows))]
        else:
            arguments = block.get("arguments") or {}
            found = [self._call(i, place, key, item, arguments) for key, (item, _) in responses.items()]
        for value, (item, _) in zip(found, responses.values(), strict=True):
            if value is None or not math.isfinite(value):
                raise ConfigError(f"{place} has no reward for a response of pair {item.pair}: leave the pair out")
        return found

    def _call(self, i: int, place: str, key: _Response, item: Shown, arguments: Mapping[str, Any]) -> float | None:
        try:
            value = self._functions[i](*key, item.fields, **arguments)
            return None if value is None else float(value)
        except Exception as exc:  # whatever a function of the user's raises
            raise ConfigError(f"{place}: {type(exc).__name__}: {first_line(exc)} (pair {item.pair})") from exc

    def _all_good(self, keys: Sequence[_Response], rewards: np.ndarray) -> np.ndarray:
        prompts: dict[str, int] = {}
        of_prompt = np.array([prompts.setdefault(prompt, len(prompts)) for prompt, _ in keys], dtype=np.int64)
        return all_good_by_prompt(rewards, of_prompt, self.settings.quantile)


def _key(prompt: Text, response: Text) -> _Response:
    return plain(prompt), plain(response)
