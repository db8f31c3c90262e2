"""The policies of a loop: who they are, how a name of a fit finds them, and how they are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from nemo_rpo.config.load import load_config
from nemo_rpo.config.merging.sources import find_config
from nemo_rpo.config.ranks import fewest_ranks
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.files.stage import fingerprint
from nemo_rpo.rounds.engine_here import EngineHere
from nemo_rpo.rounds.rounds_settings import Plan
from nemo_rpo.sampling.asks import Sampler
from nemo_rpo.sampling.canary import HuggingFaceReference
from nemo_rpo.sampling.collecting import Collected, Prompt, asks_for, collect
from nemo_rpo.sampling.engine_sampler import EngineSampler
from nemo_rpo.sampling.server_sampler import ServerSampler


def round_folder(folder: Path, number: int) -> Path:
    """Of a round, from 1."""
    return folder / f"round={number:03d}"


def fit_folder(folder: Path, number: int, fit: int) -> Path:
    """Of a fit, from 1: an ordinary run."""
    return round_folder(folder, number) / f"fit={fit}"


@dataclass(frozen=True)
class Policies:
    """Where the weights of each policy are."""

    plan: Plan

    def of(self, name: str, number: int) -> Path:
        """The policy that round ``number`` calls ``name`` (:mod:`nemo_rpo.rounds.recipes`), a Hugging Face folder."""
        when, _, fit = name.partition("/")
        if when == "last":
            number -= 1
        if when == "first" or number == 0:
            return Path(self.plan.online.start)
        return fit_folder(self.plan.folder, number, int(fit or len(self.plan.fits))) / "hf"

    def sampled(
        self, policy: Path, prompts: Sequence[Prompt], out: Path, samples: int, what: str, number: int
    ) -> Collected:
        """Samples of ``policy``, in ``out`` once all are there; ``what`` they are for and the round's ``number`` are
        part of their seeds.
        """
        from nemo_rpo.training.origin import weights_fingerprint

        settings = self.plan.online.sample
        asks = asks_for(prompts, samples, f"{self.plan.online.seed}/{what}", number)
        inputs = fingerprint(
            {
                "settings": settings.outcome() | {"samples": samples, "sampler": settings.sampler},
                "policy": weights_fingerprint(str(policy)),
                "asks": [[ask.prompt, ask.text, ask.seed] for ask in asks],
            }
        )
        with self._sampler(out.with_name("sampler.log")) as sampler:
            if not out.exists():
                sampler.use(policy)
            return collect(sampler, asks, out, inputs, settings.temperature)

    def _sampler(self, log: Path) -> Sampler | AbstractContextManager:
        settings, train = self.plan.online.sample, self.plan.online.train
        if settings.sampler == "openai":
            return ServerSampler(settings, log, HuggingFaceReference(), "online.sample")
        start = f"pretrained_checkpoint.restore_from_path={self.plan.online.start}"
        overrides = [
            *self.plan.fits[-1].over(train.overrides),
            start,
            "model.rpo.reference_from=null",
            *settings.overrides,
        ]
        config = find_config(train.config, None)
        if runs_here(load_config(train.config, overrides, notify=lambda text: None)):
            return EngineHere(settings, config, overrides)
        return EngineSampler(settings, log, config, overrides, where="online.sample")


def runs_here(cfg: RunConfig) -> bool:
    """Whether a run is one for this process: one rank on a CPU. A GPU's memory would stay with it, and several ranks
    are several processes.
    """
    return cfg.trainer.accelerator == "cpu" and cfg.trainer.num_nodes * fewest_ranks(cfg) == 1
