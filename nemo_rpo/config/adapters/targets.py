"""The layers that adapters stand beside, by Megatron's names, NeMo's or Hugging Face's.

Megatron fuses matrices that Hugging Face keeps apart: ``linear_qkv`` is ``q_proj``, ``k_proj`` and ``v_proj``, a gated
``linear_fc1`` is ``gate_proj`` and ``up_proj``. Named by Megatron's name, a fused layer has one A, which all of its
matrices share; named by Hugging Face's, each matrix has an A of its own, as in peft, and those not named have none.
Experts have adapters where they are named, with ``experts.`` before the name: one of its own for each expert.
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
EXPERTS = "experts"
# The same of each expert, which has adapters where it is asked for.
EXPERT_MATRICES = {
    f"{EXPERTS}.{layer}": tuple(f"{EXPERTS}.{matrix}" for matrix in MATRICES[layer])
    for layer in ("linear_fc1", "linear_fc2")
}
ALL_MATRICES = MATRICES | EXPERT_MATRICES
_NEMO = {
    "attention_qkv": ("linear_qkv",),
    "attention_dense": ("linear_proj",),
    "mlp_fc1": ("linear_fc1",),
    "mlp_fc2": ("linear_fc2",),
    "attention": ("linear_qkv", "linear_proj"),
    "mlp": ("linear_fc1", "linear_fc2"),
    "all": tuple(MATRICES),
    EXPERTS: tuple(EXPERT_MATRICES),
    f"{EXPERTS}.gate_up_proj": (f"{EXPERTS}.linear_fc1",),  # what transformers calls the two of all experts
}
_LAYER_OF = {matrix: layer for layer, matrices in ALL_MATRICES.items() for matrix in matrices}
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

    >>> resolve_targets(["experts"])["experts.linear_fc1"]
    (('experts.gate_proj', 'experts.up_proj'),)

    Raises:
        ConfigError: none, an unknown one (with those that are known), an embedding or output layer, a shared expert, or
            a layer named as a whole and by one of its matrices.
    """
    whole: set[str] = set()
    single: set[str] = set()
    for name in names:
        if name in ALL_MATRICES:
            whole.add(name)
        elif name in _NEMO:
            whole.update(_NEMO[name])
        elif name in _LAYER_OF:
            single.add(name)
        elif name == _ALL_LINEAR:
            single.update(matrix for matrices in MATRICES.values() for matrix in matrices)
        else:
            raise ConfigError(f"{SETTING}: {_unknown(name)}")
    if not (whole or single):
        raise ConfigError(f"{SETTING} is empty: name layers such as linear_qkv or q_proj")
    for matrix in sorted(single):
        layer = _LAYER_OF[matrix]
        if layer in whole and len(ALL_MATRICES[layer]) > 1:
            raise ConfigError(f"{SETTING} has both {layer} and {matrix}, a part of it: name one of them")
    found: Targets = {}
    for layer, matrices in ALL_MATRICES.items():
        if layer in whole:
            found[layer] = (matrices,)
        elif apart := tuple((matrix,) for matrix in matrices if matrix in single):
            found[layer] = apart
    return found


def targets_in(model: GPTArchitecture, names: Sequence[str]) -> Targets:
    """Those of :func:`resolve_targets` that ``model`` has.

    Raises:
        ConfigError: also where none is left, experts are named that the model does not have, or a gate that its MLP
            does not have.
    """
    targets = resolve_targets(names)
    for layer in EXPERT_MATRICES:
        if layer in targets and model.experts is None:
            raise ConfigError(f"{SETTING} names {layer}, and the model has no experts: leave it out")
    for layer in ("linear_fc1", f"{EXPERTS}.linear_fc1"):
        if model.activation != "swiglu" and any(part != ALL_MATRICES[layer] for part in targets.get(layer, ())):
            raise ConfigError(f"{SETTING}: the model's MLP has no gate, hence no gate_proj and up_proj: name {layer}")
    if all(map(model.has_experts, range(model.num_layers))):
        targets = {layer: parts for layer, parts in targets.items() if layer not in MLP}
    if not targets:
        raise ConfigError(
            f"{SETTING}: all MLPs of the model are experts, which have adapters where they are named alone: name "
            "experts, or a layer of the attention"
        )
    return targets


def targets_of_layer(model: GPTArchitecture, targets: Targets, layer: int) -> Targets:
    """Those of ``targets`` that are in ``layer``, from 0."""
    absent = MLP if model.has_experts(layer) else tuple(EXPERT_MATRICES)
    return {name: parts for name, parts in targets.items() if name not in absent}


def named_by_hugging_face(targets: Targets) -> list[str]:
    """The matrices that have an adapter."""
    return [matrix for parts in targets.values() for part in parts for matrix in part]


def _unknown(name: str) -> str:
    if name in _HEADS:
        return (
            f"{name} is read by the loss itself (and may be tied to the embedding) and takes no adapter: leave it out"
        )
    if "shared_expert" in name:
        return f"{name}: shared experts have no adapters here; leave it out, or name experts or layers outside of them"
    known = [*ALL_MATRICES, *_NEMO, *_LAYER_OF, _ALL_LINEAR]
    near = difflib.get_close_matches(name, known, 1)
    return f"there is no layer {name}{f' (did you mean {near[0]}?)' if near else ''}; known: {', '.join(known)}"
