"""Settings of a probe, and the only place for their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nemo_rpo.crowd.factors.factor_settings import HeldOutSettings, Kind
from nemo_rpo.errors import ConfigError

State = Literal["last", "mean"]


@dataclass(frozen=True)
class ProbeSettings:
    """How hidden states are read, and what is fitted to them.

    Attributes:
        layers: those to probe, 0 being the embeddings and -1 the last one; empty: all.
        state: ``mean`` of the answer's tokens, or its ``last`` one.
        kind: ``logistic``, or ``lda``, in closed form.
        max_tokens: of prompt and answer together; longer prompts lose their beginning, longer answers their end.
        batch: texts that the model reads at once.
        min_gain: nats by which a probe has to make held-out labels more likely than a coin does; below it its margins
            count for nothing.
        held_out: folds and ridges.
    """

    layers: tuple[int, ...] = ()
    state: State = "mean"
    kind: Kind = "logistic"
    max_tokens: int = 1024
    batch: int = 8
    min_gain: float = 3.0
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)

    def check(self) -> None:
        """Raises :class:`ConfigError` with one line that names the option to change."""
        for name in ("max_tokens", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--probe-{name.replace('_', '-')} must be 1 or more, not {getattr(self, name)}")
