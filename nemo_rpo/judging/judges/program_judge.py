"""Functions of Python as judges."""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from nemo_rpo.errors import ConfigError, first_line
from nemo_rpo.judging.judges.chat_prompts import plain
from nemo_rpo.judging.judging_settings import ProgramJudge
from nemo_rpo.judging.verdicts import FIRST, SECOND, TIE, Judge, Said, Shown, Verdict

_BATCH = 64


class CodedJudge(Judge):
    """See :class:`nemo_rpo.judging.verdicts.Judge`.

    Args:
        settings: checked.
        where: what the settings are called in messages.

    Raises:
        ConfigError: there is no such function.
    """

    def __init__(self, settings: ProgramJudge, where: str) -> None:
        self.settings, self.name, self.family = settings, settings.name, settings.family
        self.orders = settings.orders if settings.of == "pair" else "none"
        self._function = scoring_function(settings.call, where)
        self._scores: dict[tuple[str, str], float | None] = {}

    def outcome(self) -> dict[str, Any]:
        """What its verdicts depend on."""
        return self.settings.outcome()

    def judge(self, shown: Iterable[Shown]) -> Iterator[Verdict]:
        """See :class:`nemo_rpo.judging.verdicts.Judge`. An error of the function is no verdict, and is kept."""
        rest = iter(shown)
        with ThreadPoolExecutor(self.settings.at_once) as pool:
            while batch := list(islice(rest, _BATCH)):
                yield from pool.map(self._judged, batch)

    def _judged(self, item: Shown) -> Verdict:
        start, error = time.monotonic(), None
        said, p, raw = None, None, ""
        try:
            said, p, raw = self._compared(item) if self.settings.of == "pair" else self._scored(item)
        except Exception as exc:  # whatever a function of the user's raises
            error = f"{type(exc).__name__}: {first_line(exc)}"
        latency = time.monotonic() - start
        return Verdict(item.pair, self.name, item.shown_first, said, p, raw, latency, time.time(), error)

    def _compared(self, item: Shown) -> tuple[Said | None, float | None, str]:
        given = (plain(item.prompt), plain(item.first), plain(item.second), item.fields)
        answer = self._function(*given, **self.settings.arguments)
        if answer is None or answer in (FIRST, SECOND, TIE):
            return answer, None, str(answer)
        p = float(answer)
        if not 0 <= p <= 1:
            raise ValueError(f"the probability must be between 0 and 1, got {p:g}")
        return (FIRST if p > 0.5 else SECOND if p < 0.5 else TIE), p, f"{p:g}"

    def _scored(self, item: Shown) -> tuple[Said | None, float | None, str]:
        scores = [self._score(item, text) for text in (item.first, item.second)]
        said = None if None in scores else self._by_rule(*scores)
        return said, None, json.dumps(scores)

    def _score(self, item: Shown, response: Any) -> float | None:
        prompt, text = plain(item.prompt), plain(response)
        if (prompt, text) not in self._scores:
            value = self._function(prompt, text, item.fields, **self.settings.arguments)
            score = None if value is None else float(value)
            self._scores[prompt, text] = None if score is None or math.isnan(score) else score
        return self._scores[prompt, text]

    def _by_rule(self, first: float, second: float) -> Said:
        s = self.settings
        if s.rule == "pass_rate":
            return by_pass_rates(first, second, s.best, s.gap)
        if abs(first - second) <= s.margin:
            return TIE
        return FIRST if first > second else SECOND


def by_pass_rates(first: float, second: float, best: float = 0.8, gap: float = 0.4) -> Said:
    """AceCoder's rule: the better one passes at least ``best`` of its tests and ``gap`` more than the other, which
    passes some. Else the two are not told apart.

    Source: Zeng et al., "AceCoder" (2502.01718), the filter of its pairs.

    >>> [by_pass_rates(*pair) for pair in ((0.9, 0.4), (0.9, 0.6), (0.1, 0.7), (0.9, 0.0), (0.3, 1.0))]
    ['first', 'tie', 'tie', 'tie', 'second']
    """
    high, low = max(first, second), min(first, second)
    told_apart = high >= best and high - low >= gap - 1e-12 and low > 0
    return (FIRST if first > second else SECOND) if told_apart else TIE


def scoring_function(call: str, where: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; modules in the working folder count. Raises :class:`ConfigError`."""
    module, _, name = call.partition(":")
    if "" not in sys.path:  # the user's own modules lie where the command is run
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as exc:
        raise ConfigError(f"{where}.call: {module} cannot be imported ({first_line(exc)})") from exc
    except AttributeError as exc:
        raise ConfigError(f"{where}.call: {module} has no function '{name}'") from exc
