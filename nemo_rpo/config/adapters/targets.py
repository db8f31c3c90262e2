"""The layers that adapters stand beside, by Megatron's names, NeMo's or Hugging Face's.

Megatron fuses matrices that Hugging Face keeps apart: ``linear_qkv`` is ``q_proj``, ``k_proj`` and ``v_proj``, a gated
``linear_fc1`` is ``gate_proj`` and ``up_proj``. Named by Megatron's name, a fused layer has one A, which all of its
matrices share; named by Hugging Face's, each matrix has an A of its own, as in peft, and those not named have none.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_rpo.errors import ConfigError

if TYPE_CHECKING:
    from nemo_rpo.config.architecture import GPTArchitecture

SETTING = "model.peft.lora_tuning.target_modules"

# Megatron's layer -> the matrices that it is made of, by Hugging Face's names and in the order of its rows.
MATRICES = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
_NEMO = {
    "attention_qkv": ("linear_qkv",),
    "attention_dense": ("linear_proj",),
    "mlp_fc1": ("linear_fc1",),
    "mlp_fc2": ("linear_fc2",),
    "attention": ("linear_qkv", "linear_proj"),
    "mlp": ("linear_fc1", "linear_fc2"),
    "all": tuple(MATRICES),
}
_LAYER_OF = {matrix: layer for layer, matrices in MATRICES.items() for matrix in matrices}
MLP = ("linear_fc1", "linear_fc2")
_ALL_LINEAR = "all-linear"  # peft's
_HEADS = {"lm_head", "output_layer", "embed_tokens", "word_embeddings", "embedding"}

Parts = tuple[tuple[str, ...], ...]  # the matrices that share an A, of each A of a layer
Targets = dict[str, Parts]


def resolve_targets(names: Sequence[str]) -> Targets:
    """Megatron's layer -> its parts, in Megatron's order.

    >>> resolve_targets(["attention_qkv"])
    {'linear_qkv': (('q_proj', 'k_proj', 'v_proj'),)}
    >>> resolve_targets(["v_proj", "q_proj", "o_proj"])
    {'linear_qkv': (('q_proj',), ('v_proj',)), 'linear_proj': (('o_proj',),)}

    Raises:
        ConfigError: none, an unknown one (with those that are known), an embedding or output layer, experts, or a layer
            named as a whole and by one of its matrices.
    """
    whole: set[str] = set()
    single: set[str] = set()
    for name in names:
        if name in MATRICES:
            whole.add(name)
        elif name in _NEMO:
            whole.update(_NEMO[name])
        elif name in _LAYER_OF:
            single.add(name)
        elif name == _ALL_LINEAR:
            single.update(_LAYER_OF)
        else:
            raise ConfigError(f"{SETTING}: {_unknown(name)}")
    if not (whole or single):
        raise ConfigError(f"{SETTING} is empty: name layers such as linear_qkv or q_proj")
    for matrix in sorted(single):
        layer = _LAYER_OF[matrix]
        if layer in whole and len(MATRICES[layer]) > 1:
            raise ConfigError(f"{SETTING} has both {layer} and {matrix}, a part of it: name one of them")
    found: Targets = {}
    for layer, matrices in MATRICES.items():
        if layer in whole:
            found[layer] = (matrices,)
        elif apart := tuple((matrix,) for matrix in matrices if matrix in single):
            found[layer] = apart
    return found


def targets_in(model: GPTArchitecture, names: Sequence[str]) -> Targets:
    """Those of :func:`resolve_targets` that ``model`` has outside of experts, which have no adapters.

    Raises:
        ConfigError: also where none is left, or a gate is named that the model's MLP does not have.
    """
    targets = resolve_targets(names)
    if model.activation != "swiglu" and any(part != MATRICES["linear_fc1"] for part in targets.get("linear_fc1", ())):
        raise ConfigError(f"{SETTING}: the model's MLP has no gate, hence no gate_proj and up_proj: name linear_fc1")
    if all(map(model.has_experts, range(model.num_layers))):
        targets = {layer: parts for layer, parts in targets.items() if layer not in MLP}
    if not targets:
        raise ConfigError(
            f"{SETTING}: all MLPs of the model are experts, which have no adapters: name a layer of the attention"
        )
    return targets


def named_by_hugging_face(targets: Targets) -> list[str]:
    """The matrices that have an adapter."""
    return [matrix for parts in targets.values() for part in parts for matrix in part]


def _unknown(name: str) -> str:
    if name in _HEADS:
        return (
            f"{name} is read by the loss itself (and may be tied to the embedding) and takes no adapter: leave it out"
        )
    if "expert" in name:
        return f"{name}: experts have no adapters here; name layers outside of them"
    known = [*MATRICES, *_NEMO, *_LAYER_OF, _ALL_LINEAR]
    near = difflib.get_close_matches(name, known, 1)
    return f"there is no layer {name}{f' (did you mean {near[0]}?)' if near else ''}; known: {', '.join(known)}"
