"""How answers are drawn, and the only place for these defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeakingSettings:
    """How answers are drawn.

    Attributes:
        max_new_tokens: the longest answer.
        temperature, top_p: of :class:`nemo_rpo.megatron.generate.drawing.Drawing`; 0: the likeliest tokens.
        rows: answered side by side by each replica of the model.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    rows: int = 32
