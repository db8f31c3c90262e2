"""The rank of ``test_attention.py``: CausalSDPA beside Megatron-Core's DotProductAttention, forward and backward."""

# ruff: noqa: E402 (what makes Megatron-Core run on a CPU comes before its import)
from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from nemo_rpo.megatron import cpu

cpu.install()

import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.batch.segments import Segments
from nemo_rpo.megatron.network.attention import CausalSDPA

CASES: dict[str, dict[str, float]] = {
    "multi-head": {"groups": 4},
    "grouped": {"groups": 2},
    "multi-query": {"groups": 1},
    "scaled": {"groups": 2, "softmax_scale": 0.7},
    "one position": {"groups": 2, "s": 1},
    "wide heads": {"groups": 2, "head": 24},
}


def modules(groups: int, head: int, softmax_scale: float | None, dropout: float = 0.0) -> list[torch.nn.Module]:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=groups,
        kv_channels=head,
        attention_dropout=dropout,
        masked_softmax_fusion=False,
        attention_softmax_in_fp32=True,
    )
    arguments = dict(layer_number=1, attn_mask_type=AttnMaskType.causal, attention_type="self")
    return [kind(config, softmax_scale=softmax_scale, **arguments) for kind in (CausalSDPA, DotProductAttention)]


def inputs(groups: int, head: int, s: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(s, 3, heads, head, generator=generator) * 2 for heads in (4, groups, groups)]


def compare(groups: int, head: int = 8, s: int = 13, softmax_scale: float | None = None) -> dict[str, float]:
    """Largest differences of the context and of the three gradients, relative to the largest value of each."""
    tensors = inputs(groups, head, s)
    upstream = torch.randn(s, 3, 4 * head, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(s, s, dtype=torch.bool).triu(1)[None, None]
    results = []
    for module, attention_mask in zip(modules(groups, head, softmax_scale), (None, mask), strict=True):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        context = module(*leaves, attention_mask)
        context.backward(upstream)
        results.append((context.detach(), *(leaf.grad for leaf in leaves)))
    names = ("context", "query gradient", "key gradient", "value gradient")
    return {
        name: float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
        for name, ours, theirs in zip(names, *results, strict=True)
    }


TREES = {
    "sequences": [(5,), (1,), (7,)],
    "pairs with one prompt": [(4, 3, 2), (1, 1, 5), (6, 2, 2)],
    "three responses": [(3, 2, 1, 4), (2, 3)],
    "sequences and pairs": [(4,), (2, 3, 3), (1,)],
}


def sees(trees: list[tuple[int, ...]]) -> torch.Tensor:
    """Of every two tokens of a pack, whether the first may look at the second, by the definition of a tree."""
    place = [
        (tree, branch) for tree, parts in enumerate(trees) for branch, tokens in enumerate(parts) for _ in range(tokens)
    ]
    allowed = [
        [j <= i and place[j][0] == tree and place[j][1] in (0, branch) for j in range(len(place))]
        for i, (tree, branch) in enumerate(place)
    ]
    return torch.tensor(allowed)


def compare_trees(trees: list[tuple[int, ...]]) -> dict[str, float]:
    """A pack in CausalSDPA beside DotProductAttention under the mask of the whole pack."""
    s = sum(map(sum, trees))
    tensors = [tensor[:, :1] for tensor in inputs(groups=2, head=8, s=s)]
    upstream = torch.randn(s, 1, 32, generator=torch.Generator().manual_seed(4))
    packed, whole = modules(2, 8, None)
    ways = {
        "packed": partial(packed, attention_mask=None, packed_seq_params=Segments(trees)),
        "whole": partial(whole, attention_mask=~sees(trees)[None, None]),
    }
    results = []
    for attend in ways.values():
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        context = attend(*leaves)
        context.backward(upstream)
        results.append((context.detach(), *(leaf.grad for leaf in leaves)))
    names = ("context", "query gradient", "key gradient", "value gradient")
    return {
        name: float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
        for name, ours, theirs in zip(names, *results, strict=True)
    }


def dropout() -> dict[str, float]:
    """How far two calls of a module with dropout are from each other, in training and in evaluation."""
    module, _ = modules(2, 8, None, dropout=0.5)
    tensors = inputs(2, 8, 13)
    return {
        mode: float((module.train(mode == "training")(*tensors, None) - module(*tensors, None)).abs().max())
        for mode in ("training", "evaluation")
    }


def main() -> None:
    """``argv``: the file to write to."""
    cfg = RunConfig()
    cfg.trainer.accelerator = "cpu"
    parallel.initialize(cfg)
    found = {name: compare(**case) for name, case in CASES.items()} | {"dropout": dropout()}
    found |= {name: compare_trees(trees) for name, trees in TREES.items()}
    Path(sys.argv[1]).write_text(json.dumps(found))
    parallel.finalize()


if __name__ == "__main__":
    main()
