"""FLOPs of a GPT, and peak rates of GPUs: for the MFU of a run, the planner and the benchmarks.

In a text of s tokens, the forward pass of one token takes

    2 N_layers + 2 L a c s      in the layers: a multiply-add a weight, and causal attention (two products with s/2 keys
                                on average, a·c wide, in L layers)
    2 N_head                    in the head, where it is scored

The backward pass takes twice as much, a live reference one forward pass. *Model FLOPs* are these and no others:
recomputed activations and a chunked head's second product do not count, and every response counts with its prompt, also
where a pack holds the prompt once. MFU is model FLOPs a second over the peak of all devices.
"""

from __future__ import annotations

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
    """Weights of one layer's matrices, which tensor parallelism splits: QKV, projection, MLP."""
    heads, groups = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    attention = model.hidden_size * (heads + 2 * groups) + heads * model.hidden_size
    matrices = 3 if model.activation == "swiglu" else 2
    return attention + matrices * model.hidden_size * model.ffn_hidden_size


def forward_flops(architecture: GPTArchitecture, length: float) -> tuple[float, float]:
    """FLOPs of a token in the layers and in the head, for texts of ``length`` tokens."""
    queries = architecture.num_attention_heads * architecture.kv_channels
    layer = 2 * layer_matrix_weights(architecture) + 2 * queries * length
    return architecture.num_layers * layer, 2 * architecture.vocab_size * architecture.hidden_size


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
