"""Experts of a model as Transformer Engine groups them: one layer for all of a rank's, with ``weight0``, ``weight1`` …,
which is given the tokens of each. A stand-in for its contract, with torch's products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Grouped(torch.nn.Module):
    def __init__(self, layers: list[torch.nn.Module]) -> None:
        super().__init__()
        self.num_gemms = len(layers)
        for number, layer in enumerate(layers):
            self.register_parameter(f"weight{number}", layer.weight)

    def forward(self, x: Tensor, m_splits: list[int]) -> tuple[Tensor, None]:
        weights = (getattr(self, f"weight{number}") for number in range(self.num_gemms))
        return torch.cat([F.linear(own, weight) for own, weight in zip(x.split(m_splits), weights, strict=True)]), None


class TEColumnParallelGroupedLinear(_Grouped):
    """By its name."""


class TERowParallelGroupedLinear(_Grouped):
    """By its name."""


class TEGroupedMLP(torch.nn.Module):
    """The experts of ``sequential``, with its weights, under the keys that it has in checkpoints."""

    def __init__(self, sequential: torch.nn.Module) -> None:
        super().__init__()
        experts = list(sequential.local_experts)
        self.linear_fc1 = TEColumnParallelGroupedLinear([expert.linear_fc1 for expert in experts])
        self.linear_fc2 = TERowParallelGroupedLinear([expert.linear_fc2 for expert in experts])
        self.__dict__["of"] = sequential  # no part of the model

    def forward(self, x: Tensor, tokens_per_expert: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        tokens = tokens_per_expert.tolist()
        gate, up = self.linear_fc1(x, tokens)[0].chunk(2, -1)
        return self.linear_fc2(F.silu(gate) * up * probs.unsqueeze(-1), tokens)[0], None

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict[str, Any]:
        found = {}
        for name, entry in self.of.sharded_state_dict(prefix, sharded_offsets, metadata).items():
            number, layer, weight = name.removeprefix(f"{prefix}local_experts.").split(".", 2)
            if weight == "weight":
                found[f"{prefix}{layer}.weight{number}"] = entry
        return found


def group_experts(chunk: torch.nn.Module) -> None:
    """Makes the experts of a bare GPTModel grouped ones."""
    for layer in chunk.decoder.layers:
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts = TEGroupedMLP(layer.mlp.experts)
