"""FLOPs of a GPT, and peak rates of GPUs: for the MFU of a run, the planner and the benchmarks.

In a text of s tokens, the forward pass of one token takes

    2 N_layers + 2 L a c s      in the layers: a multiply-add a weight, and causal attention (two products with s/2 keys
                                on average, a·c wide, in L layers); of experts, the weights of those that a token has
    2 N_head                    in the head, where it is scored

The backward pass takes twice as much, a live reference one forward pass. *Model FLOPs* are these and no others:
recomputed activations and a chunked head's second product do not count, and every response counts with its prompt, also
where a pack holds the prompt once. MFU is model FLOPs a second over the peak of all devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_rpo.config.architecture import GPTArchitecture

# Dense bf16 operations a second, from NVIDIA's data sheets; also the measure of FP8, so that ratios are ratios of time.
PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


def peak_flops(device: str) -> float | None:
    """The peak rate (FLOPs a second) of the GPU with this name; None if it is not in :data:`PEAK`.

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    """
    return next((rate for name, rate in PEAK.items() if name in device), None)


def layer_matrix_weights(model: GPTArchitecture) -> int:
    """Weights of the matrices of a layer without experts, which tensor parallelism splits: QKV, projection, MLP."""
    return attention_weights(model) + mlp_weights(model, model.ffn_hidden_size)


def attention_weights(model: GPTArchitecture) -> int:
    """Weights of one layer's attention: QKV and projection."""
    heads, groups = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    return model.hidden_size * (heads + 2 * groups) + heads * model.hidden_size


def mlp_weights(model: GPTArchitecture, width: int) -> int:
    """Weights of an MLP, or of an expert, that is ``width`` wide."""
    return (3 if model.activation == "swiglu" else 2) * model.hidden_size * width


@dataclass(frozen=True)
class ExpertLayer:
    """Weights of a layer of experts by where they are: split by tensor ranks, whole on each of them, and of an expert.

    Attributes:
        experts, chosen: how many there are, and how many a token has.
    """

    split: int
    whole: int
    expert: int
    experts: int
    chosen: int

    @classmethod
    def of(cls, model: GPTArchitecture) -> ExpertLayer:
        """Of a model that has experts."""
        e = model.experts
        return cls(
            split=attention_weights(model) + mlp_weights(model, e.moe_shared_expert_intermediate_size or 0),
            whole=model.hidden_size * (e.num_moe_experts + e.moe_shared_expert_gate),
            expert=mlp_weights(model, e.moe_ffn_hidden_size),
            experts=e.num_moe_experts,
            chosen=e.moe_router_topk,
        )

    @property
    def total(self) -> int:
        """All of them."""
        return self.split + self.whole + self.experts * self.expert

    @property
    def active(self) -> int:
        """Those that a token meets."""
        return self.split + self.whole + self.chosen * self.expert


def layers_weights(model: GPTArchitecture, active: bool) -> int:
    """Weights of all layers' matrices; ``active``: of experts those alone that a token meets."""
    if model.experts is None:
        return model.num_layers * layer_matrix_weights(model)
    of_experts, layer = model.experts.layers(model.num_layers), ExpertLayer.of(model)
    dense = (model.num_layers - of_experts) * layer_matrix_weights(model)
    return dense + of_experts * (layer.active if active else layer.total)


def forward_flops(architecture: GPTArchitecture, length: float) -> tuple[float, float]:
    """FLOPs of a token in the layers and in the head, for texts of ``length`` tokens."""
    queries = architecture.num_attention_heads * architecture.kv_channels
    layers = 2 * layers_weights(architecture, active=True) + 2 * architecture.num_layers * queries * length
    return layers, 2 * architecture.vocab_size * architecture.hidden_size


def step_flops(
    architecture: GPTArchitecture,
    lengths: np.ndarray,
    scored: np.ndarray,
    frozen: int,
    head: bool = True,
    adapters: bool = False,
) -> float:
    """Model FLOPs of an optimizer step over texts of ``lengths`` tokens int ``[n]``, prompts included, of which
    ``scored`` int ``[n]`` are scored.

    ``frozen``: policies that run forward beside the trained one; ``head``: whether there are log-probs (of a reward
    model there are none). ``adapters``: the base is frozen, and its weights have no gradients (the adapters' own
    products, some per mille, are left out).
    """
    layers, of_head = forward_flops(architecture, lengths.astype(np.float64))
    return (2 + (not adapters) + frozen) * float(lengths @ layers + head * of_head * scored.sum())
