"""Rivals of RE-PO that estimate the noise of a pair beforehand: from its annotators (RGPO), from its texts (FA-DPO).

Neither learns anything of annotators while it trains; the EM on top of them would correct twice, and refuses them
unless forced. Throughout, u = β (a_w - a_l) is DPO's margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.losses.base import LogisticLoss
from nemo_rpo.losses.families.fixed_noise import recorded_log_odds
from nemo_rpo.losses.log_ratio import LogRatioLoss
from nemo_rpo.losses.options import choice, number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@register("rgpo")
@dataclass(frozen=True)
class ReliabilityGuidedDPO(LogRatioLoss):
    r"""Reliability-guided preference optimization (RGPO, 2607.20515) over DPO.

    L = -λ tanh(\|c\|) log σ(sign(c) u),  c the ``consensus``: log-odds that the recorded choice is right, from an EM
    over the annotators *before* training (Dawid-Skene, or :func:`nemo_rpo.em.label_model.fit_label_model`). A label
    that the EM believes to be wrong is turned round, and a pair counts by how sure the EM is; the policy has no say.
    Δ = λ tanh(c) u.

    Written from the description of the method; its code has not been read.

    Options:
        weight: λ, weight of a pair that all agree on.
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(*(torch.tensor([v]) for v in (-42.0, -51.5, -44.25, -50.0)),
    ...                  pair_columns={"consensus": torch.tensor([1.0])})
    >>> ReliabilityGuidedDPO(beta=0.1)(x)  # tanh(1) · 0.5231
    tensor([0.3984])
    """

    models_noise: ClassVar[bool] = True
    columns: ClassVar[frozenset[str]] = frozenset({"consensus"})

    weight: float = number(1.0, above=0)

    def pair(self, x: PairLogprobs) -> Tensor:
        consensus = x.pair_columns["consensus"]
        return -self.weight * torch.tanh(consensus.abs()) * F.logsigmoid(consensus.sign() * self.implicit_margin(x))

    def delta(self, x: PairLogprobs) -> Tensor:
        return self.weight * torch.tanh(x.pair_columns["consensus"]) * self.implicit_margin(x)


@register("fa_dpo")
@dataclass(frozen=True)
class FlippingAwareDPO(LogRatioLoss, LogisticLoss):
    r"""Flipping-aware DPO (2512.00709): the likelihood of what was recorded, at a flip rate of each pair's own.

    L = -log[(1-ε) σ(u) + ε σ(-u)].  Exact, as a likelihood of the *recorded* label, since ε does not depend on which
    response was chosen: the rate is the column ``flip_rate``, or

    ε = σ(c₀ + c₁ \|log \|y_w\|/\|y_l\|\| + c₂ \|nll(y_w) - nll(y_l)\|),  nll a token under the reference,

    whose coefficients :func:`nemo_rpo.em.fit.flip_rates.fit_flip_rates` finds from the margins of a first round; the
    paper goes back and forth between the two. Without features it is ``forward_corrected``. The paper's similarity of
    the texts is not known to a loss: put it into ``flip_rate``.

    Options:
        rate: ``features`` or ``column``.
        intercept, length, perplexity: c₀, c₁, c₂; σ(c₀) is .1 by default.
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(*(torch.tensor([v]) for v in (-42.0, -51.5, -44.25, -50.0, 30.0, 41.0)))
    >>> FlippingAwareDPO(beta=0.1, intercept=-2.0, length=3.0)(x)  # ε = .258
    tensor([0.6113])
    """

    models_noise: ClassVar[bool] = True

    rate: str = choice("features", "column")
    intercept: float = number(math.log(0.1 / 0.9))
    length: float = number(0.0)
    perplexity: float = number(0.0)

    @property
    def needs(self) -> frozenset[str]:
        """The lengths that the features read, or the column."""
        return super().needs | {"lengths" if self.rate == "features" else "flip_rate"}

    def margin(self, x: PairLogprobs) -> Tensor:
        if self.rate == "column":
            log_odds = torch.logit(x.pair_columns["flip_rate"])
        else:
            log_odds = flip_features(x) @ x.policy_chosen.new_tensor([self.intercept, self.length, self.perplexity])
        return recorded_log_odds(self.implicit_margin(x), log_odds)


def flip_features(x: PairLogprobs) -> Tensor:
    """What FA-DPO's flip rates depend on [pairs, 3]: 1, the gap of log lengths, and that of the reference's negative
    log-likelihood a token in nats. Each stays as it is when the pair is turned round.
    """
    lengths = [length.to(x.policy_chosen.dtype).clamp(min=1) for length in (x.chosen_length, x.rejected_length)]
    chosen, rejected = x.reference_chosen / lengths[0], x.reference_rejected / lengths[1]
    gaps = (lengths[0].log() - lengths[1].log()).abs(), (chosen - rejected).abs()
    return torch.stack((torch.ones_like(gaps[0]), *gaps), -1).detach()
