"""What a run says of itself before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nemo_rpo.config.arithmetic.rate import RateSchedule
from nemo_rpo.config.load import print_on_first_rank
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron.model import MegatronGPTRPOModel
from nemo_rpo.megatron.network.build import kernel_facts
from nemo_rpo.megatron.parallel import world_size
from nemo_rpo.training.adapters import adapter_facts
from nemo_rpo.training.beliefs import Beliefs
from nemo_rpo.training.data_of_run import Split
from nemo_rpo.training.logs.run_log import startup_log
from nemo_rpo.training.schedule import Schedule


def log_start(
    cfg: RunConfig,
    model: MegatronGPTRPOModel,
    splits: Mapping[str, Split],
    schedule: Schedule,
    beliefs: Beliefs | None,
    checkpoint: Path | None,
) -> None:
    """Prints, on the first rank, steps, data, annotators, model and start, and warnings of the rate's schedule.

    ``beliefs``: what is known of annotators from before; ``checkpoint``: the one resumed from.
    """
    cache, rpo = splits["train"].cache, cfg.model.rpo
    frozen = rpo.enabled and rpo.freeze_eta and rpo.label_model.enabled
    facts = {
        "steps": f"{schedule.total_steps:,} in all, {schedule.steps_per_epoch:,} an epoch",
        **{f"{name} data": split.cache.summary() for name, split in splits.items() if name != "sweep"},
        "annotators": f"{len(cache.annotators):,}",
        **({} if beliefs is None else {"believed": beliefs.summary(cache.annotators, rpo)}),
        **({"label model": "not fitted, since model.rpo.freeze_eta keeps all reliabilities"} if frozen else {}),
        **({"groups of taste": f"{model.loss.groups}; {model.em.begun}"} if model.loss.groups > 1 else {}),
        **adapter_facts.facts(cfg, model),
        **kernel_facts(cfg),
        "start": f"resumed from {checkpoint}" if checkpoint else str(cfg.pretrained_checkpoint.restore_from_path),
    }
    startup_log(cfg, facts, world_size())
    sched = cfg.model.optim.sched
    for text in RateSchedule.of(sched, schedule.total_steps).warnings(sched):
        print_on_first_rank(f"warning: {text}")
