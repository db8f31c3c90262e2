"""Names of Transformer Engine that have changed, or will, within its supported releases."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from nemo_rpo.megatron.compat.places import reaches

_CHECKS = {
    "fp8_tensorwise": "is_fp8_available",
    "fp8_blockwise": "is_fp8_block_scaling_available",
    "fp8_mxfp8": "is_mxfp8_available",
}
_OLD_CHECKS = {
    "fp8_tensorwise": "check_fp8_support",
    "fp8_blockwise": "check_fp8_block_scaling_support",
    "fp8_mxfp8": "check_mxfp8_support",
}


@reaches("transformer_engine.pytorch:autocast")
def autocast(recipe: Any) -> AbstractContextManager:
    """Transformer Engine's linear layers run in ``recipe`` inside.

    Reason: ``autocast`` since 2.9; the older ``fp8_autocast`` goes away.
    """
    import transformer_engine.pytorch as te

    return te.autocast(recipe=recipe) if hasattr(te, "autocast") else te.fp8_autocast(enabled=True, fp8_recipe=recipe)


@reaches(
    "transformer_engine.pytorch:is_fp8_available(return_reason)",
    "transformer_engine.pytorch:is_fp8_block_scaling_available(return_reason)",
    "transformer_engine.pytorch:is_mxfp8_available(return_reason)",
)
def objections() -> tuple[tuple[str, str], ...]:
    """(precision, what Transformer Engine says against it) for each FP8 precision that it refuses on this machine.

    Reason: ``is_fp8_available`` and its like are public since 2.9. Before, the checks stood in
    ``transformer_engine.pytorch.fp8``, which later releases deprecate and will remove.
    """
    import transformer_engine.pytorch as te

    found = []
    for precision, check in _CHECKS.items():
        if hasattr(te, check):
            able, said = getattr(te, check)(return_reason=True)
        else:
            from transformer_engine.pytorch import fp8

            able, said = getattr(fp8, _OLD_CHECKS[precision], lambda: (True, ""))()
        if not able:
            found.append((precision, said))
    return tuple(found)


def normalises(layer: torch.nn.Module) -> bool:
    """Whether a linear layer has its norm inside."""
    return hasattr(layer, "return_layernorm_output")


@reaches("transformer_engine.pytorch:LayerNormLinear[return_layernorm_output, return_layernorm_output_gathered]")
def hand_out_normed_input(layer: torch.nn.Module) -> None:
    """Has a layer that normalises its input itself return the normed input too, this rank's positions of it.

    Reason: an adapter reads what the layer's matrix reads, and Transformer Engine's fused layer keeps that to itself
    unless asked by a constructor's argument that Megatron does not pass.
    """
    if normalises(layer):
        layer.return_layernorm_output, layer.return_layernorm_output_gathered = True, False


@reaches("transformer_engine.pytorch:GroupedLinear[num_gemms, weight]")
def grouped_weights(layer: torch.nn.Module) -> list[torch.Tensor]:
    """The matrices of a grouped layer, one an expert; empty where it keeps all of them in one tensor.

    Reason: it has ``weight0``, ``weight1``, … and no list of them.
    """
    found = [getattr(layer, f"weight{number}", None) for number in range(layer.num_gemms)]
    return [] if any(weight is None for weight in found) else found
