"""Bytes of a checkpoint and of an export, by formula.

With N weights, on n GPUs of which each holds P (:mod:`nemo_rpo.planning.memory`):

    checkpoint  14 N     bf16 weights, and of the optimizer fp32 weights and two moments (12 N in fp32); each number is
                         written once, by one of the ranks that hold it
    a GPU       14 N/n   of it, copied to host memory while a writer process puts it on the disk
    frozen       4 P     each policy that is swapped in, two copies in host memory (8 P in fp32): the reference, the
                         previous iterate, and wherever model.rpo.reference says, π₀ where the KL to it is measured
    export       2 N     (4 N in fp32) gathered tensor by tensor, and of experts expert by expert, in the smallest group
                         of ranks that holds the model; its first rank writes them

Under LoRA a checkpoint is of the adapters' weights alone, and what is swapped is no more than that; the export is of
merged weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_rpo.config.adapters.adapter_size import adapter_weights
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron.batch.loss_inputs import StepNeeds
from nemo_rpo.planning.memory import peak_memory
from nemo_rpo.planning.models import total_weights


@dataclass(frozen=True)
class WrittenBytes:
    """Bytes of a checkpoint in all, of a GPU's share of it, in the host's memory for each GPU, and of an export."""

    checkpoint: float
    share: float
    host: float
    export: float


def written_bytes(cfg: RunConfig, architecture: GPTArchitecture, gpus: int) -> WrittenBytes:
    """What a run on ``gpus`` GPUs writes, and what of it is in host memory at a time."""
    low = cfg.trainer.precision == "bf16"
    weights = total_weights(architecture)
    saved = adapter_weights(architecture, cfg.model.peft) if cfg.model.peft.lora else weights
    checkpoint = (14 if low else 12) * saved
    needs = StepNeeds.of(base_loss(cfg.model), cfg.model)
    swapped = 0 if cfg.model.reference_in_force == "resident" else needs.live_reference + needs.previous_iterate
    swapped = 0 if cfg.model.peft.lora else swapped + cfg.model.rpo.measures_kl
    frozen = 2 * swapped * peak_memory(cfg, architecture, gpus).weights if swapped else 0
    return WrittenBytes(checkpoint, checkpoint / gpus, frozen + checkpoint / gpus, (2 if low else 4) * weights)
