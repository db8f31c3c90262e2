"""Parts of a layer spec exchanged for ours."""

from __future__ import annotations

from functools import partial
from typing import Any

from nemo_rpo.errors import ReleaseError
from nemo_rpo.megatron.compat.places import reaches

_SPEC = "megatron.core.transformer.spec_utils:ModuleSpec(module, params, submodules)"


@reaches(_SPEC)
def set_module(spec: Any, module: type, **params: Any) -> None:
    """Has ``spec`` build ``module``, with ``params`` beside those that it gives already.

    Reason: Megatron's functions that make a spec have no argument for the layer's class.
    """
    spec.module, spec.params = module, {**spec.params, **params}


@reaches(
    _SPEC,
    "megatron.core.transformer.transformer_layer:TransformerLayerSubmodules.input_layernorm",
    "megatron.core.transformer.transformer_layer:TransformerLayerSubmodules.pre_mlp_layernorm",
    "megatron.core.transformer.transformer_layer:TransformerLayerSubmodules.self_attention",
    "megatron.core.transformer.transformer_layer:TransformerLayerSubmodules.mlp",
    "megatron.core.transformer.attention:SelfAttentionSubmodules.core_attention",
    "megatron.core.transformer.attention:SelfAttentionSubmodules.q_layernorm",
    "megatron.core.transformer.attention:SelfAttentionSubmodules.k_layernorm",
    "megatron.core.transformer.mlp:MLPSubmodules.activation_func",
    "megatron.core.transformer.mlp:MLP[use_te_activation_func]",
    "megatron.core.transformer.moe.moe_layer:MoESubmodules.experts",
    "megatron.core.transformer.moe.moe_layer:MoESubmodules.shared_experts",
)
def set_part(layer: Any, path: str, part: Any) -> None:
    """Has the spec ``layer`` build ``part`` at ``path``, such as ``self_attention.core_attention``.

    Reason: the local spec's norms refuse sequence parallelism, its attention keeps all scores, and its activation is
    a function of the configuration; the spec's own fields are the only way to others. ``mlp`` and its experts are
    ModuleSpecs up to 0.18 and partial functions since 0.19. ``mlp.activation_func`` is built only under
    ``use_te_activation_func``.
    Raises :class:`ReleaseError` where there is no such part.
    """
    *owners, name = path.split(".")
    parts = layer.submodules
    for owner in owners:
        spec = getattr(parts, owner)
        parts = spec.keywords["submodules"] if isinstance(spec, partial) else spec.submodules
    if not hasattr(parts, name):
        raise ReleaseError(f"this release of megatron-core has no {path} in its layer spec: install a supported one")
    setattr(parts, name, part)


@reaches(
    "megatron.core.transformer.transformer_layer:TransformerLayerSubmodules.sharded_state_dict_keys_map",
    "megatron.core.models.gpt.gpt_layer_specs:get_gpt_layer_local_spec",
)
def keep_norm_of_experts(layer: Any) -> None:
    """Leaves the norm before the experts of the local spec ``layer`` its own name in checkpoints.

    Reason: the local spec renames it to that of Transformer Engine's first linear layer, which brings the norm; but
    Transformer Engine's spec has it as a module of its own before experts, and checkpoints of both are to be one.
    """
    parts = layer.submodules
    parts.sharded_state_dict_keys_map = {
        ours: theirs
        for ours, theirs in parts.sharded_state_dict_keys_map.items()
        if not ours.startswith("pre_mlp_layernorm")
    }
