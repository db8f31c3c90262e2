r"""Completions judged alone, thumbs up or down: KTO, APO-zero and BCO.

A completion that was judged alone is a pair whose other side is absent: a response of no tokens, whose log-ratio is 0
under every policy. Recorded as good it stands on the chosen side, recorded as bad on the rejected side, so its label
is turned round the way every pair's is (``PairLogprobs.swapped``), and the EM, which asks only for L of either label,
doubts a thumb as it doubts a preference: w = σ(Δ/τ + Σ_v s_v logit η_v).

With a(y) = log π(y)/π_ref(y), a_w and a_l the log-ratios of the two sides, one of which is 0, and z the reference point
in nats, what all three compare is

    u = β (a_w - a_l - s z),      s = +1 where the completion is chosen, -1 where it is rejected

that is β (a(y) - z) of a good completion and β (z - a(y)) of a bad one. u changes sign when the pair is turned round. z
is one number of the global batch, given to the loss as a column; it is detached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nemo_rpo.losses.base import LogisticLoss, PreferenceLoss
from nemo_rpo.losses.options import number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@dataclass(frozen=True)
class UnpairedLoss(PreferenceLoss):
    r"""A loss of u. Which column is z says ``reference_point``; None: z = 0.

    Options:
        beta: β, per nat of log-ratio.
    """

    unpaired: ClassVar[bool] = True
    reference_point: ClassVar[str | None] = None

    beta: float = number(0.1, above=0)

    def utility(self, x: PairLogprobs) -> Tensor:
        """u [pairs]."""
        chosen, rejected = x.log_ratios()
        if self.reference_point is None:
            return self.beta * (chosen - rejected)
        side = (x.chosen_length > 0).to(chosen.dtype) - (x.rejected_length > 0).to(chosen.dtype)
        return self.beta * (chosen - rejected - side * x.pair_columns[self.reference_point].detach())


@dataclass(frozen=True)
class ValueLoss(UnpairedLoss):
    r"""L = λ (1 - σ(u)): what a judge with a value function σ loses on a completion.

    λ_D where the completion is labelled good, λ_U where it is labelled bad. With λ_D = λ_U = 1 the losses of both
    labels add up to 1, so flips that hit all alike only shrink the gradient (Ghosh, Kumar and Sastry, AAAI 2017); flips
    by some annotators more than by others do not. For the same reason |Δ| = |tanh(u/2)| is below 1: under a
    ``link_tau`` of 1 the policy doubts no label of an annotator who is known to be right more than 73 % of the time.

    Options:
        desirable_weight, undesirable_weight: λ_D and λ_U; TRL advises λ_D n_good / (λ_U n_bad) between 1 and 4/3.
        beta: see :class:`UnpairedLoss`.
    """

    desirable_weight: float = number(1.0, above=0)
    undesirable_weight: float = number(1.0, above=0)

    def pair(self, x: PairLogprobs) -> Tensor:
        lost = torch.sigmoid(-self.utility(x))
        return torch.where(x.chosen_length > 0, self.desirable_weight * lost, self.undesirable_weight * lost)


@register("kto")
@dataclass(frozen=True)
class KTO(ValueLoss):
    r"""Kahneman-Tversky Optimization (2402.01306, Eq. 7).

    L = λ_D (1 - σ(β(a(y) - z₀))) of a good completion, λ_U (1 - σ(β(z₀ - a(y)))) of a bad one. z₀ estimates
    KL(π ‖ π_ref): the mean log-ratio of completions behind *other* prompts, at least 0 (column ``mismatched_kl``).

    Options: see :class:`ValueLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0, 0.0]), torch.tensor([0.0, -51.5]),
    ...                  torch.tensor([-44.25, 0.0]), torch.tensor([0.0, -50.0]),
    ...                  torch.tensor([9, 0]), torch.tensor([0, 12]), pair_columns={"mismatched_kl": torch.ones(2)})
    >>> KTO(beta=0.1)(x)
    tensor([0.4688, 0.4378])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference", "lengths", "mismatched_kl"})
    reference_point: ClassVar[str | None] = "mismatched_kl"


@register("apo_zero_unpaired")
@dataclass(frozen=True)
class APOZeroUnpaired(ValueLoss):
    r"""The unpaired form of APO-zero (2408.06266, Eq. 7), as TRL has it: KTO with z₀ = 0.

    Options: see :class:`ValueLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([0.0]), torch.tensor([-44.25]), torch.tensor([0.0]),
    ...                  torch.tensor([9]), torch.tensor([0]))
    >>> APOZeroUnpaired(beta=0.1)(x)
    tensor([0.4440])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference", "lengths"})


@register("bco")
@dataclass(frozen=True)
class BCO(UnpairedLoss, LogisticLoss):
    r"""Binary Classifier Optimization (2404.04656): L = -log σ(u), the logistic loss of telling good from bad.

    A true likelihood, so Z ≡ 1 and Δ = u. The paper's δ is β z; z is the mean log-ratio of the global batch (column
    ``mean_log_ratio``), where TRL keeps a running mean over all batches so far. Without the paper's weights for prompts
    that good and bad completions do not share.

    Options: see :class:`UnpairedLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0, 0.0]), torch.tensor([0.0, -51.5]),
    ...                  torch.tensor([-44.25, 0.0]), torch.tensor([0.0, -50.0]),
    ...                  torch.tensor([9, 0]), torch.tensor([0, 12]), pair_columns={"mean_log_ratio": torch.ones(2)})
    >>> BCO(beta=0.1)(x)
    tensor([0.6325, 0.5759])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference", "lengths", "mean_log_ratio"})
    reference_point: ClassVar[str | None] = "mean_log_ratio"

    def margin(self, x: PairLogprobs) -> Tensor:
        return self.utility(x)
