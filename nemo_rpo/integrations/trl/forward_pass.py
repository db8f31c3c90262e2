"""A policy's forward pass as TRL's releases have it: since 1.15 the head gives log-probs, before that it gives logits.

Shapes: n pairs of a micro-batch, chosen first; s tokens of its longest text; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trl.trainer.utils
from torch import Tensor

_NOT_FOR_THE_MODEL = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
# TRL puts it on the models of a trainer.
_FUSED = hasattr(trl.trainer.utils, "add_fused_lm_head")


def forward(model: Any, inputs: Mapping[str, Tensor]) -> Any:
    """What ``model`` says of a batch; collectives of the model alone."""
    for_model = {name: tensor for name, tensor in inputs.items() if name not in _NOT_FOR_THE_MODEL}
    if _FUSED:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        for_model |= {"labels": labels, "fused_lm_head": True}
    return model(**for_model, use_cache=False)


def response_logps(output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Of ``output``, the log-probs of the responses ``[2n]``, summed in fp32. No collective."""
    mask, ids = inputs["completion_mask"][:, 1:], inputs["input_ids"][:, 1:]
    # Prompt-learning adapters put virtual tokens in front.
    if _FUSED:
        return output.log_probs[:, -mask.shape[1] :].float().sum(-1)  # 0 outside the responses
    # By what TRL makes the reference's: the two start as the same numbers.
    of_tokens = trl.trainer.utils.selective_log_softmax(output.logits[:, -mask.shape[1] - 1 : -1], ids)
    return of_tokens.float().masked_fill(mask == 0, 0.0).sum(-1)
