"""How far a run is and how fast: a bar where stderr is a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TextIO

from nemo_rpo.errors import missing_extra

_SHOWN = {
    "loss": "loss",
    "acc": "acc",
    "margin": "margin",
    "grad_norm": "grad",
    "em/eta_mean": "η",
    "em/eta_min": "η min",
}


class Rates:
    """Pairs, tokens and FLOPs a second over the last ``window`` steps; the slow first step leaves it soon."""

    def __init__(self, window: int = 50) -> None:
        self._steps: deque[tuple[float, int, int, float]] = deque(maxlen=window)

    def add(self, seconds: float, pairs: int, tokens: int, flops: float = 0.0) -> None:
        """Adds a step: its seconds, pairs and tokens."""
        self._steps.append((seconds, pairs, tokens, flops))

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds of the recent steps."""
        return sum(step[0] for step in self._steps) / max(len(self._steps), 1)

    @property
    def pairs_per_s(self) -> float:
        """Pairs a second over the recent steps."""
        return self._per_second(1)

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second over the recent steps."""
        return self._per_second(2)

    @property
    def flops_per_s(self) -> float:
        """Floating-point operations a second over the recent steps."""
        return self._per_second(3)

    def _per_second(self, column: int) -> float:
        seconds = sum(step[0] for step in self._steps)
        return sum(step[column] for step in self._steps) / seconds if seconds > 0 else 0.0


class Progress:
    """Steps ``start`` to ``total``: a tqdm bar on a terminal, else a line every ``every`` steps and at the last.

    Raises:
        MissingExtraError: a terminal, and tqdm is not installed.
    """

    def __init__(self, total: int, start: int = 0, every: int = 10, stream: TextIO | None = None) -> None:
        self.rates = Rates()
        self._total, self._every = total, every
        self._stream = stream or sys.stderr
        self._bar = _bar(total, start, self._stream) if self._stream.isatty() else None

    def step(self, step: int, metrics: Mapping[str, Any], mfu: float | None = None, memory: float = 0.0) -> None:
        """Shows that optimizer step ``step``, which :attr:`rates` has, is done; ``memory`` in bytes."""
        speed = f"{self.rates.pairs_per_s:,.1f} pairs/s  {_thousands(self.rates.tokens_per_s)} tokens/s"
        speed += f"  MFU {mfu:.1%}" if mfu else ""
        speed += f"  {memory / 2**30:.1f} GiB" if memory else ""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{figures(metrics)}  {speed}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._every == 0 or step == self._total:
            left = timedelta(seconds=round((self._total - step) * self.rates.seconds_per_step))
            self.line(f"step {step}/{self._total}  {figures(metrics)}  {speed}  ETA {left}")

    def line(self, text: str) -> None:
        """A line of its own, above the bar where there is one. A log on a full disk is no reason to end a run."""
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.write(text, file=self._stream)
            else:
                print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def figures(metrics: Mapping[str, Any]) -> str:
    """The figures that a person watches, on one line."""
    return "  ".join(f"{short} {float(metrics[name]):.4g}" for name, short in _SHOWN.items() if name in metrics)


def _bar(total: int, start: int, stream: TextIO) -> Any:
    try:
        from tqdm import tqdm
    except ImportError as exc:
        raise missing_extra("tqdm", "mcore") from exc
    return tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, file=stream)


def _thousands(value: float) -> str:
    return f"{value / 1000:,.1f}k" if value >= 1000 else f"{value:,.0f}"
