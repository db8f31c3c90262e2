"""Samples from the engine in this very process: for a CPU and one rank, where a start costs more than the samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemo_rpo.rounds.rounds_settings import RoundSampleSettings
from nemo_rpo.sampling.asks import Ask, Response

# Asks that the weights are read for at once: what is lost where the process is killed.
_PORTION = 1024


class EngineHere:
    """A :class:`nemo_rpo.sampling.asks.Sampler`; what :class:`nemo_rpo.sampling.engine_sampler.EngineSampler` does on
    ranks of its own. A sample depends on its prompt and seed alone.

    Args:
        settings: temperature, top_p, max_tokens, rows.
        config: settings of the layout, a YAML file.
        overrides: over them.
    """

    def __init__(self, settings: RoundSampleSettings, config: Path, overrides: list[str]) -> None:
        self.settings, self.config, self.overrides = settings, config, overrides
        self.policy = Path()

    def __enter__(self) -> EngineHere:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is left running."""

    def use(self, policy: Path) -> None:
        """Samples come from these weights from now on."""
        self.policy = policy

    def sample(self, asks: Iterable[Ask]) -> Iterator[Response]:
        """See :class:`nemo_rpo.sampling.asks.Sampler`."""
        from nemo_rpo.evaluation.checkpoint import target_of
        from nemo_rpo.evaluation.samples import Asked, sample
        from nemo_rpo.evaluation.speaking_settings import SpeakingSettings

        s, remaining = self.settings, iter(asks)
        speaking = SpeakingSettings(s.max_tokens, s.temperature, s.top_p, s.rows)
        while portion := [Asked(*ask) for ask in itertools.islice(remaining, _PORTION)]:
            target = target_of(self.policy, self.config, None, self.overrides, needs_reference=False)
            for record in sample(target, portion, speaking):
                yield Response.of(record)
