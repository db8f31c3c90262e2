"""Batches and loss variants that the tests of this folder share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nemo_rpo.losses import PairLogprobs, PreferenceLoss, build_loss

# Every registered loss, and every option that changes its formula. test_registry checks that none is forgotten.
VARIANTS: tuple[tuple[str, dict], ...] = (
    ("dpo", {}),
    ("dpo", {"average_log_probs": True}),
    ("f_dpo", {"divergence": "reverse_kl"}),
    ("f_dpo", {"divergence": "forward_kl"}),
    ("f_dpo", {"divergence": "js"}),
    ("f_dpo", {"divergence": "alpha", "alpha": 0.3}),
    ("ipo", {}),
    ("ipo_avg", {}),
    ("simpo", {}),
    ("cpo", {}),
    ("cpo", {"nll": "sum"}),
    ("cpo", {"link_terms": "all"}),
    ("cpo", {"cpo_alpha": 0.0}),
    ("genrm", {}),
    ("orpo", {}),
    ("orpo", {"link_terms": "all"}),
    ("asft", {}),
    ("asft", {"nll_weight": 0.0}),
    ("hinge", {}),
    ("tdpo1", {}),
    ("tdpo2", {}),
    ("dmpo", {}),
    ("dmpo", {"gamma": 1.0}),
    ("todo", {"beta": 0.1}),
    ("p2l_bt", {}),
    ("p2l_rao_kupper", {}),
    ("p2l_bag", {}),
    ("mmpo", {"beta": 0.1}),
    ("sppo_hard", {"beta": 0.1}),
    ("sppo", {"beta": 0.1}),
    ("gpo", {"beta": 0.1}),
    ("inpo", {"beta": 0.05, "tau": 0.02}),
    ("onpo", {}),
    ("egpo", {}),
    ("dno", {}),
    ("dno_prct", {}),
    ("rpo_sq", {}),
    ("rpo_bwd_kl", {}),
    ("rpo_fwd_kl", {}),
    ("bt", {}),
    ("bt_margin", {}),
    ("bt_scaled", {}),
    ("bt_scaled", {"link": "scaled"}),
    ("pal", {"groups": 3}),
    ("gpm", {"tau": 1.0}),
    ("gpm", {"tau": 1.0, "gated": True, "normalize": False}),
    ("plackett_luce", {}),
    ("plackett_luce", {"scores": "reward"}),
    ("pro", {}),
    ("pro", {"sft_weight": 0.0}),
    ("brain", {}),
    ("cdpo", {}),
    ("rdpo", {}),
    ("forward_corrected", {}),
    ("udpo", {"a": 0.3}),
    ("rgpo", {"weight": 1.7}),
    ("fa_dpo", {"intercept": -1.5, "length": 0.8, "perplexity": -0.3}),
    ("fa_dpo", {"rate": "column"}),
    ("holder_dpo", {}),
    ("ropo", {}),
    ("dr_dpo", {}),
    ("kto", {}),
    ("kto", {"desirable_weight": 1.3, "undesirable_weight": 0.8}),
    ("apo_zero_unpaired", {}),
    ("bco", {}),
)


def variant_id(variant: tuple[str, dict]) -> str:
    name, options = variant
    return "-".join([name, *(f"{key}={value}" for key, value in options.items())])


def variant_loss(variant: tuple[str, dict]) -> PreferenceLoss:
    name, options = variant
    return build_loss(name, **options)


def random_batch(pairs: int = 6, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> PairLogprobs:
    """A batch with every column any loss asks for; log-probs a few nats from their reference, as in training."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (pairs,), generator=generator)

    reference = uniform(-60, -20, pairs), uniform(-60, -20, pairs)
    turns = integers(1, 5), integers(1, 5)
    present = [torch.arange(4) < count[:, None] for count in turns]
    response_columns = {
        "base_logps": tuple(logps + normal(pairs) for logps in reference),
        "kl": (uniform(0, 5, pairs), uniform(0, 5, pairs)),
        "turn_log_ratios": tuple(normal(pairs, 4, scale=2) * mask for mask in present),
        "turns": turns,
        "score": (normal(pairs, scale=2), normal(pairs, scale=2)),
        "scores": (normal(pairs, 3), normal(pairs, 3)),
        "embedding": (normal(pairs, 6), normal(pairs, 6)),
    }
    later = torch.Generator().manual_seed(seed + 1)  # what came first stays what it was
    order = torch.rand(pairs, 3, generator=later).argsort(1)
    response_columns["player"] = (order[:, 0], order[:, 1])
    pair_columns = {
        "margin": uniform(0, 3, pairs),
        "strength": integers(1, 4),
        "win_rate_chosen": uniform(0.5, 1, pairs),
        "win_rate_rejected": uniform(0, 0.5, pairs),
        "preference_score_chosen": uniform(0, 2, pairs),
        "preference_score_rejected": uniform(-2, 0, pairs),
        "consensus": normal(pairs, scale=2),
        "flip_rate": uniform(0.02, 0.6, pairs),
        "tie": integers(0, 2),
        "group_weight": normal(pairs, 3).softmax(-1),
        "gate": uniform(0.2, 1, pairs, 3),
        "mismatched_kl": uniform(0, 3, 1).expand(pairs),
        "mean_log_ratio": normal(1).expand(pairs),
        "both_bad": torch.randint(0, 2, (pairs,), generator=later),
        "coefficients": torch.randn(pairs, 3, generator=later, dtype=torch.float64).to(dtype),
        "tie_width": torch.randn(pairs, generator=later, dtype=torch.float64).to(dtype),
    }
    policy = [logps + normal(pairs, scale=3) for logps in reference]
    return PairLogprobs(*policy, *reference, integers(5, 50), integers(5, 50), response_columns, pair_columns)


# What a gradient can flow into: outputs of the model.
LEAVES = ("policy", "kl", "turn_log_ratios", "score", "scores", "embedding")


def leaves_of(x: PairLogprobs, names: tuple[str, ...] = LEAVES) -> list[Tensor]:
    """Detached copies of the tensors called ``names``, chosen then rejected, that require gradients."""
    tensors = []
    for name in names:
        tensors.extend(x.policy() if name == "policy" else x.response_columns[name])
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def with_leaves(x: PairLogprobs, leaves: list[Tensor], names: tuple[str, ...] = LEAVES) -> PairLogprobs:
    """``x`` with the tensors called ``names`` replaced by ``leaves``, in the order of :func:`leaves_of`."""
    pairs = dict(zip(names, zip(leaves[::2], leaves[1::2], strict=True), strict=True))
    policy = pairs.pop("policy", x.policy())
    columns = {**x.response_columns, **pairs}
    return replace(x, policy_chosen=policy[0], policy_rejected=policy[1], response_columns=columns)


def rows(x: PairLogprobs, index: Tensor | slice) -> PairLogprobs:
    """The pairs at ``index``."""
    return PairLogprobs(
        *(getattr(x, name)[index] for name in ("policy_chosen", "policy_rejected")),
        *(getattr(x, name)[index] for name in ("reference_chosen", "reference_rejected")),
        *(getattr(x, name)[index] for name in ("chosen_length", "rejected_length")),
        {name: (chosen[index], rejected[index]) for name, (chosen, rejected) in x.response_columns.items()},
        {name: column[index] for name, column in x.pair_columns.items()},
    )
