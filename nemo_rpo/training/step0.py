"""The step-0 law: before the first update the policy is its reference, so every margin is 0."""

from __future__ import annotations

import torch

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ReferencePolicyError
from nemo_rpo.megatron.forward import REFERENCE_KEYS, to_device
from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
from nemo_rpo.megatron.statistics import largest_on_all_ranks

# Nats a response token. fp32 log-probs computed in batches of another shape differ by 1e-6; bf16 ones by a few 1e-3,
# which partly cancels in a sum over tokens. Another model is off by tenths.
_TOLERANCE = {"32": 1e-4, "bf16": 1e-2}


def check_step0(model: MegatronGPTRPOModel, batch: Batch, cfg: RunConfig) -> None:
    """Refuses to start from a reference that is not the policy. ``batch`` holds reference log-probs.

    Raises:
        ReferencePolicyError: on every rank alike, with the largest margin found. Collectives: the model's forward ones
            and one all-reduce of 8 bytes over the world.
    """
    if "reference" not in model.loss.needs:
        return
    worst = torch.tensor([-torch.inf], dtype=torch.float64, device=model.device)
    for micro_batch, logprobs in zip(batch, model.get_logprob_batch(batch), strict=False):
        on_device = to_device(micro_batch, model.device)
        chosen, rejected = (
            logprobs[side] - on_device[key] for side, key in zip(("chosen", "rejected"), REFERENCE_KEYS, strict=True)
        )
        tokens = (on_device["chosen_length"] + on_device["rejected_length"]).double()
        # Both responses, not their difference alone: a wrong reference may be off by the same amount on either side.
        off = torch.maximum(chosen.abs(), rejected.abs()).double() / tokens
        worst = torch.maximum(worst, torch.where(on_device["valid"], off.nan_to_num(torch.inf), 0.0).max())
    found = largest_on_all_ranks(worst)
    allowed = cfg.model.rpo.step0_tolerance or _TOLERANCE[cfg.trainer.precision]
    if found > allowed:
        raise ReferencePolicyError(
            f"the reference is not the policy's starting point: log-probs differ by up to {found:.3g} nats a token "
            "before the first step, "
            f"{allowed:.3g} are allowed (model.rpo.step0_tolerance); check pretrained_checkpoint and "
            "model.rpo.reference_cache"
        )
