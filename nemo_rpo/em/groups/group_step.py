"""The preference loss of pairs that have one truth a group of annotators. Shapes: P pairs, V votes, G groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.votes import Votes

if TYPE_CHECKING:
    from nemo_rpo.losses import PairLogprobs


class GroupEStep(Protocol):
    """What the step asks an estimator of groups for; :class:`nemo_rpo.em.groups.TasteReliability` is one."""

    def pair_weight(self, votes: Votes) -> Tensor:
        """ω [P, G], the weights of a pair's annotators on the groups; rows add up to 1."""
        ...

    def group_posterior(self, delta: Tensor, votes: Votes) -> Tensor:
        """w [P, G], the probability that chosen is truly better for each group."""
        ...

    def accumulate_groups(self, pair: Tensor, delta: Tensor, votes: Votes, valid: Tensor) -> None:
        """Adds what the pairs with index ``pair`` [P] and margins ``delta`` [P, G] say about annotators."""
        ...


class GroupLoss(Protocol):
    """A loss with a margin a group; ``pal`` is one."""

    def group_margins(self, x: PairLogprobs) -> Tensor:
        """Δ_g [P, G], with gradient."""
        ...


def group_preference(
    loss: GroupLoss, x: PairLogprobs, votes: Votes, valid: Tensor, em: GroupEStep, learn_from: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Preference loss Σ_g ω_g [-w_g log σ(Δ_g) - (1-w_g) log σ(-Δ_g)] [P], and Σ_g ω_g w_g [P] without gradient: the
    probability that chosen is better for whoever labelled the pair.

    In training (``learn_from``: the index of each pair in the data) the step's evidence is added to ``em``. No
    collective, no wait for the device.
    """
    delta = loss.group_margins(x)
    weight, w = em.pair_weight(votes), em.group_posterior(delta.detach(), votes)
    if learn_from is not None:
        em.accumulate_groups(learn_from, delta.detach(), votes, valid)
    each = -(w * F.logsigmoid(delta) + (1 - w) * F.logsigmoid(-delta))
    return (weight * each).sum(-1), (weight * w).sum(-1)
