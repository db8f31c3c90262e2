"""Losses of whole rankings. On a pair each is an ordinary preference loss, and that is how the EM takes them: a ranking
is split into its pairs, for "the reverse ranking" is not what remains when a ranking is wrong.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nemo_rpo.losses.base import AnchoredLoss, LogisticLoss, PreferenceLoss
from nemo_rpo.losses.families.margins import soft_label_loss
from nemo_rpo.losses.options import choice, number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.ranking import RankingLogprobs
from nemo_rpo.losses.registry import register


@dataclass(frozen=True)
class ListwiseLoss(PreferenceLoss):
    """A loss of rankings [prompts, n] -> [prompts]; as a :class:`PreferenceLoss` it is itself at n = 2."""

    listwise: ClassVar[bool] = True

    @abstractmethod
    def ranking(self, x: RankingLogprobs) -> Tensor:
        """The loss of each ranking, unreduced [prompts]."""


def successive_choices(logits: Tensor, valid: Tensor) -> Tensor:
    r"""Σ_t [logsumexp_{j ≥ t} z_tj - z_tt]: the NLL of choosing the best, then the best of the rest, and so on.

    Args:
        logits: z [prompts, n, n], z_tj the logit of response j in choice t.
        valid: real responses [prompts, n].

    Returns:
        [prompts]

    >>> s = torch.tensor([[-0.5, -0.9, -1.3, -1.1]])
    >>> successive_choices(s[:, None].expand(-1, 4, -1), torch.ones(1, 4, dtype=torch.bool))
    tensor([2.6915])
    """
    n = logits.shape[-1]
    own = torch.eye(n, dtype=torch.bool, device=logits.device)
    later = torch.ones(n, n, dtype=torch.bool, device=logits.device).triu()
    offered = later & valid[:, None, :] | own
    total = logits.masked_fill(~offered, -torch.inf).logsumexp(-1)
    return (total - logits.diagonal(dim1=-2, dim2=-1)).sum(-1)


@register("plackett_luce")
@dataclass(frozen=True)
class PlackettLuce(ListwiseLoss, LogisticLoss):
    r"""The Plackett-Luce likelihood of a ranking (2301.11270; for policies, appendix A.3 of 2305.18290).

    -log P(y_1 ≻ … ≻ y_n) = Σ_t [logsumexp_{j≥t} s_j - s_t].  A pair is Bradley-Terry (DPO for ``log_ratio``), exact.

    Options:
        scores: ``log_ratio``: s = β log π/π_ref. ``reward``: s is the reward head's ``score``.
        beta: β; no effect on ``reward``.

    >>> x = RankingLogprobs(None, columns={"score": torch.tensor([[-0.5, -0.9, -1.3, -1.1]])})
    >>> PlackettLuce(scores="reward").ranking(x)
    tensor([2.6915])
    """

    scores: str = choice("log_ratio", "reward")
    beta: float = number(0.1, above=0)

    @property
    def needs(self) -> frozenset[str]:
        """The reward head's score, or policy and reference."""
        return frozenset({"score"} if self.scores == "reward" else {"policy", "reference"})

    def ranking(self, x: RankingLogprobs) -> Tensor:
        x.require(self.needs, self.name)
        s = x.columns["score"] if self.scores == "reward" else self.beta * (x.policy - x.reference)
        return successive_choices(s[:, None].expand(-1, s.shape[1], -1), x.valid())

    def margin(self, x: PairLogprobs) -> Tensor:
        if self.scores == "reward":
            chosen, rejected = x.response_columns["score"]
            return chosen - rejected
        chosen, rejected = x.log_ratios()
        return self.beta * (chosen - rejected)


@register("pro")
@dataclass(frozen=True)
class PRO(AnchoredLoss, ListwiseLoss, LogisticLoss):
    r"""Preference Ranking Optimization (2306.17492): successive choices, sharpened by the gaps of the rewards.

    With s = log π/|y| and gaps T_ti = r_t - r_i (i > t), T_tt = max_i T_ti::

        L = -Σ_{t<n} log [e^{s_t T_tt} / (e^{s_t T_tt} + Σ_{i>t} e^{s_i T_ti})] + κ (n-1)² NLL_sum(y_1)

    Unit gaps are Plackett-Luce. A pair is -log σ(m (s_w - s_l)) + κ NLL_sum(w), with the gap m the label's ``margin``.
    (Not the PRO of 2505.23316.)

    Options:
        sft_weight: κ, weight of the anchor; it grows with (n-1)² in a ranking.
        link_terms: see :class:`AnchoredLoss`.

    >>> x = RankingLogprobs(torch.tensor([[-0.5, -0.9, -1.3, -1.1]]), length=torch.ones(1, 4),
    ...                     columns={"reward": torch.tensor([[2.0, 1.0, 0.5, -1.0]])})
    >>> PRO(sft_weight=0.0).ranking(x)
    tensor([3.7168])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "lengths", "margin"})

    sft_weight: float = number(0.05, at_least=0)

    def ranking(self, x: RankingLogprobs) -> Tensor:
        x.require(self.needs, self.name)
        valid = x.valid()
        s = x.policy / x.length.clamp(min=1)
        reward = x.columns["reward"].to(s.dtype)
        gaps = reward[:, :, None] - reward[:, None, :]
        n = reward.shape[-1]
        worse = torch.ones(n, n, dtype=torch.bool, device=s.device).triu(1) & valid[:, None, :]
        own = gaps.masked_fill(~worse, -torch.inf).amax(-1)
        # The last response has nothing left to be better than; its choice is certain whatever its own gap.
        gaps = torch.diagonal_scatter(gaps, own.masked_fill(own.isinf(), 0.0), dim1=-2, dim2=-1)
        loss = successive_choices(gaps * s[:, None, :], valid)
        if not self.sft_weight:
            return loss
        others = valid.sum(-1) - 1
        return loss - self.sft_weight * others.square() * x.policy[:, 0]

    def margin(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.mean_policy()
        return x.pair_columns["margin"] * (chosen - rejected)

    def anchor(self, x: PairLogprobs) -> Tensor | None:
        return -self.sft_weight * x.policy_chosen if self.sft_weight else None


@register("brain")
@dataclass(frozen=True)
class BRAIn(ListwiseLoss):
    r"""Bayesian Reward-conditioned Amortized Inference (2402.02479), its self-normalised form.

    Over n samples of a proposal q' (``base_logps``), with rewards r::

        L = -Σ_i α_i log β_i,  α = softmax(log π_ref + r/γ - log q'),  β = softmax(log π - log q')

    A pair is a soft-label loss with target log-odds (log π_ref/q')(w) - (log π_ref/q')(l) + m/γ, m the label's
    ``margin``; with q' = π_ref and m → ∞ it is DPO with β = 1.

    Options:
        gamma: γ, temperature of the rewards.

    >>> x = RankingLogprobs(
    ...     torch.tensor([[-2.8, -4.1, -5.2]]), torch.tensor([[-3.0, -4.0, -5.0]]),
    ...     columns={"reward": torch.tensor([[1.0, 0.2, -0.5]]), "base_logps": torch.tensor([[-3.2, -3.9, -5.1]])})
    >>> BRAIn(gamma=0.5).ranking(x)
    tensor([0.8619])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference", "base_logps", "margin"})

    gamma: float = number(1.0, above=0)

    def ranking(self, x: RankingLogprobs) -> Tensor:
        x.require(self.needs, self.name)
        valid, proposal = x.valid(), x.columns["base_logps"]
        target = x.reference + x.columns["reward"] / self.gamma - proposal
        target = target.masked_fill(~valid, -torch.inf).softmax(-1)
        log_weight = (x.policy - proposal).masked_fill(~valid, -torch.inf).log_softmax(-1)
        return -(target * log_weight.masked_fill(~valid, 0.0)).sum(-1)

    def pair(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.base_log_ratios()
        return soft_label_loss(chosen - rejected, self._target(x))

    def _target(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.response_columns["base_logps"]
        drift = (x.reference_chosen - chosen) - (x.reference_rejected - rejected)
        return drift + x.pair_columns["margin"] / self.gamma
