"""Several rewards of each response as one judge: see :mod:`nemo_rpo.judging.rewards` for how they are combined."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nemo_rpo.data.rows import Text
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.judging.chat_prompts import plain
from nemo_rpo.judging.judging_settings import CombinedJudge
from nemo_rpo.judging.program_judge import scoring_function
from nemo_rpo.judging.rewards import all_good, good_enough, harmonic
from nemo_rpo.judging.verdicts import FIRST, SECOND, TIE, Judge, Shown, Verdict

_FEWEST = 4  # responses to a prompt from which its own quantile is taken, and not that of all prompts together
_Response = tuple[str, str]  # prompt and response


class CombinedRewards(Judge):
    """See :class:`nemo_rpo.judging.verdicts.Judge`. Order means nothing to it; it looks at all responses first, since
    what is good enough for a prompt is a quantile of the rewards of its responses.

    Args:
        settings: checked.
        where: what the settings are called in messages.
    """

    orders = "none"

    def __init__(self, settings: CombinedJudge, where: str) -> None:
        self.settings, self.name, self.family = settings, settings.name, settings.family
        self._functions = [
            (scoring_function(block["call"], f"{where}.rewards[{i}]"), block.get("arguments") or {})
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
        for item in shown:
            for text in (item.first, item.second):
                key = _key(item.prompt, text)
                if key not in self._rewards:
                    self._rewards[key] = [self._score(i, key, item) for i in range(len(self._functions))]
        keys = list(self._rewards)
        rewards = np.array([self._rewards[key] for key in keys]).T
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

    def _score(self, i: int, key: _Response, item: Shown) -> float:
        function, arguments = self._functions[i]
        try:
            value = float(function(*key, item.fields, **arguments))
        except Exception as exc:  # whatever a function of the user's raises
            place = f"judge {self.name}, reward {i}"
            raise ConfigError(f"{place}: {type(exc).__name__}: {exc} (pair {item.pair})") from exc
        if not math.isfinite(value):
            raise ConfigError(f"judge {self.name}, reward {i}: {value} is no reward (pair {item.pair})")
        return value

    def _all_good(self, keys: Sequence[_Response], rewards: np.ndarray) -> np.ndarray:
        of_prompt: dict[str, list[int]] = {}
        for place, (prompt, _) in enumerate(keys):
            of_prompt.setdefault(prompt, []).append(place)
        value = np.empty(len(keys))
        for places in of_prompt.values():
            measured = rewards[:, places] if len(places) >= _FEWEST else rewards
            references = [good_enough(row, self.settings.quantile) for row in measured]
            value[places] = all_good(rewards[:, places], references)
        return value


def _key(prompt: Text, response: Text) -> _Response:
    return plain(prompt), plain(response)
