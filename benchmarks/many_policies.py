"""Many copies of one small Llama that train side by side in one process, each on labels and a loss of its own.

The matrices of the preference world's policy are so small that a step is mostly the overhead of starting kernels. R
runs that share their pairs and their order share it: all weights have a leading dimension R. What a run does with its
log-probs is the package's own (losses, pair step, estimators).

Shapes: R runs, n pairs or texts, T tokens, H hidden size, D size of a head, V words.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

_PROMPT = 3  # bos, style, sep


class ManyLlamas:
    """R copies of the Llama in ``folder``, which have grown apart; ``weights`` by Hugging Face's names, [R, …]."""

    def __init__(self, folder: Path, runs: int) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {
            name: value.float().repeat(runs, *[1] * value.dim()).requires_grad_()
            for name, value in load_file(folder / "model.safetensors").items()
            if name != "lm_head.weight"  # tied
        }

    def log_probs(self, ids: Tensor) -> Tensor:
        """log π(response | prompt) of texts ``ids`` [n, T + 1], for every run: [R, n]."""
        x = self._hidden(ids[:, :-1])[:, :, _PROMPT - 1 :]
        logits = x @ self.weights["model.embed_tokens.weight"].transpose(1, 2).unsqueeze(1)
        target = ids[:, _PROMPT:].expand(len(logits), -1, -1).unsqueeze(-1)
        return (logits.gather(-1, target).squeeze(-1) - logits.logsumexp(-1)).sum(-1)

    def _hidden(self, ids: Tensor) -> Tensor:
        table = self.weights["model.embed_tokens.weight"]
        one_hot = F.one_hot(ids, table.shape[1]).to(table).flatten(0, 1)
        x = (one_hot @ table).unflatten(1, ids.shape)  # [R, n, T, H]
        for layer in range(self.config["num_hidden_layers"]):
            x = x + self._attention(self._norm(x, f"model.layers.{layer}.input_layernorm.weight"), layer)
            y = self._norm(x, f"model.layers.{layer}.post_attention_layernorm.weight")
            gate, up = (self._linear(y, f"model.layers.{layer}.mlp.{part}_proj.weight") for part in ("gate", "up"))
            x = x + self._linear(F.silu(gate) * up, f"model.layers.{layer}.mlp.down_proj.weight")
        return self._norm(x, "model.norm.weight")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[name]
        return torch.bmm(x.flatten(1, -2), weight.transpose(1, 2)).unflatten(1, x.shape[1:-1])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add(self.config["rms_norm_eps"]).rsqrt()
        return x * scale * self.weights[name][:, None, None]

    def _attention(self, x: Tensor, layer: int) -> Tensor:
        runs, n, tokens, hidden = x.shape
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        q, k, v = (
            self._linear(x, f"model.layers.{layer}.self_attn.{part}_proj.weight")
            .view(runs * n, tokens, count, hidden // heads)
            .transpose(1, 2)
            for part, count in (("q", heads), ("k", groups), ("v", groups))
        )
        cos, sin = _rotation(tokens, hidden // heads, x)
        q, k = q * cos + _half_turned(q) * sin, k * cos + _half_turned(k) * sin
        k, v = (part.repeat_interleave(heads // groups, 1) for part in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        return self._linear(out, f"model.layers.{layer}.self_attn.o_proj.weight")


def _rotation(tokens: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    frequency = 10_000.0 ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angle = (torch.arange(tokens).unsqueeze(-1) * frequency).repeat(1, 2).to(like)
    return angle.cos(), angle.sin()


def _half_turned(x: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return torch.cat((-two, one), -1)


class ManyAdams:
    """Adam on [R, …] weights with the gradient of each run clipped by its own norm, as ``conf/demo.yaml`` has it."""

    def __init__(self, weights: dict[str, Tensor], lr: float, warmup_steps: int, total: int, clip: float = 1.0) -> None:
        self.parameters = list(weights.values())
        self.adam = torch.optim.Adam(self.parameters, betas=(0.9, 0.98), eps=1e-8, foreach=True)
        self.lr, self.warmup_steps, self.total, self.clip, self.done = lr, warmup_steps, total, clip, 0

    def step(self, loss: Tensor) -> None:
        """One step on ``loss``, the sum over the runs."""
        if self.done < self.warmup_steps:
            rate = self.lr * (self.done + 1) / self.warmup_steps
        else:
            way = (self.done - self.warmup_steps) / max(1, self.total - self.warmup_steps)
            rate = 0.5 * self.lr * (1 + math.cos(math.pi * way))
        self.adam.param_groups[0]["lr"] = rate
        self.adam.zero_grad()
        loss.backward()
        norm = sum(p.grad.flatten(1).square().sum(-1) for p in self.parameters).sqrt()  # [R]
        factor = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        for p in self.parameters:
            p.grad.mul_(factor.view(-1, *[1] * (p.dim() - 1)))
        self.adam.step()
        self.done += 1
