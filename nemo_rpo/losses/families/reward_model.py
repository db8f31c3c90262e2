"""Losses of reward models: Bradley-Terry on scores, one or one a group of taste, general preferences on embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.errors import ConfigError
from nemo_rpo.losses.base import LogisticLoss, PreferenceLoss
from nemo_rpo.losses.options import choice, flag, number, whole
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


def _score_difference(x: PairLogprobs) -> Tensor:
    chosen, rejected = x.response_columns["score"]
    return chosen - rejected


@register("bt")
@dataclass(frozen=True)
class BradleyTerry(LogisticLoss):
    r"""The Bradley-Terry likelihood of a reward model.

    L = -log σ(r_w - r_l),  r the response's ``score``.  Exact.

    >>> import torch
    >>> BradleyTerry()(PairLogprobs(None, None, response_columns={"score": (torch.tensor([2.0]), torch.tensor([0.3]))}))
    tensor([0.1678])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"score"})

    def margin(self, x: PairLogprobs) -> Tensor:
        return _score_difference(x)


@register("bt_margin")
@dataclass(frozen=True)
class MarginBradleyTerry(PreferenceLoss):
    r"""Bradley-Terry that asks for the label's strength as a margin (2307.09288; 2410.01257).

    L = -log σ(r_w - r_l - m),  m the ``strength`` of the preference, which stays when the pair is turned round.

    >>> import torch
    >>> x = PairLogprobs(None, None, response_columns={"score": (torch.tensor([2.0]), torch.tensor([0.3]))},
    ...                  pair_columns={"strength": torch.tensor([3.0])})
    >>> MarginBradleyTerry()(x)
    tensor([1.5410])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"score", "strength"})

    def pair(self, x: PairLogprobs) -> Tensor:
        return -F.logsigmoid(_score_difference(x) - x.pair_columns["strength"])


@register("bt_scaled")
@dataclass(frozen=True)
class ScaledBradleyTerry(PreferenceLoss):
    r"""Bradley-Terry weighted by the label's strength, as in HelpSteer2-Preference (2410.01257).

    L = -m log σ(r_w - r_l),  m the ``strength``: as if the annotator had said it m times.

    Options:
        link: ``unscaled`` reads m as the importance of the row and nothing more: Δ = r_w - r_l, exact. ``scaled`` is
            the letter of RE-PO's Eq. 2, Δ = m (r_w - r_l): a strong preference is then also trusted more.

    >>> import torch
    >>> x = PairLogprobs(None, None, response_columns={"score": (torch.tensor([2.0]), torch.tensor([0.3]))},
    ...                  pair_columns={"strength": torch.tensor([3.0])})
    >>> ScaledBradleyTerry()(x)
    tensor([0.5034])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"score", "strength"})

    link: str = choice("unscaled", "scaled")

    @property
    def exact(self) -> bool:
        """Whether both directions of the loss sum to 1 as probabilities."""
        return self.link == "unscaled"

    def pair(self, x: PairLogprobs) -> Tensor:
        return -x.pair_columns["strength"] * F.logsigmoid(_score_difference(x))

    def delta(self, x: PairLogprobs) -> Tensor:
        difference = _score_difference(x)
        return difference if self.exact else x.pair_columns["strength"] * difference


@register("pal")
@dataclass(frozen=True)
class PluralisticBradleyTerry(LogisticLoss):
    r"""A reward model with one output a group of taste (after PAL, 2406.08469): annotators weigh the outputs.

    L = -log σ(Σ_g W_g (r_g,w - r_g,l)),  r the response's ``scores`` and W the ``group_weight`` of the pair's
    annotators. Exact. Under the EM each group has a truth of its own and W is learnt with the rewards, see
    :class:`nemo_rpo.em.groups.TasteReliability`. With one group it is ``bt``, to the bit. PAL's prototypes are rewards
    here, not points that a distance is taken to.

    Options:
        groups: G, how many.

    >>> import torch
    >>> scores = (torch.tensor([[2.0, 0.0]]), torch.tensor([[0.3, 1.0]]))
    >>> x = PairLogprobs(None, None, response_columns={"scores": scores},
    ...                  pair_columns={"group_weight": torch.tensor([[0.5, 0.5]])})
    >>> PluralisticBradleyTerry()(x)  # -log σ(.5 · 1.7 - .5 · 1)
    tensor([0.5334])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"scores", "group_weight"})

    groups: int = whole(2, at_least=1)

    def group_margins(self, x: PairLogprobs) -> Tensor:
        """r_w - r_l of each group [pairs, G]; an output of width 1 may come without its dimension."""
        chosen, rejected = x.response_columns["scores"]
        margins = chosen - rejected
        margins = margins.unsqueeze(-1) if margins.dim() == 1 else margins
        if margins.shape[1] != self.groups:
            raise ConfigError(f"the loss 'pal' has {self.groups} groups, and the scores {margins.shape[1]}")
        return margins

    def margin(self, x: PairLogprobs) -> Tensor:
        return (x.pair_columns["group_weight"] * self.group_margins(x)).sum(-1)


@register("gpm")
@dataclass(frozen=True)
class GeneralPreferenceModel(LogisticLoss):
    r"""The general preference model (2410.02197): preferences that may be cyclic.

    L = -log σ(s/τ),  s(w ≻ l) = ⟨R v_w, v_l⟩ = Σ_b λ_b (v_w[2b] v_l[2b+1] - v_w[2b+1] v_l[2b]),  v the response's
    ``embedding`` and λ the prompt's ``gate``.  s is skew-symmetric, hence exact; Bradley-Terry is its scalar case.

    Options:
        tau: τ, temperature of the score.
        normalize: embeddings are scaled to length 1 first, as τ = 0.1 supposes.
        gated: λ comes from the column ``gate``; otherwise λ = 1.

    >>> import torch
    >>> v = (torch.tensor([[1.0, 2.0, 0.5, -1.0]]), torch.tensor([[0.3, -0.4, 2.0, 1.0]]))
    >>> GeneralPreferenceModel(tau=1.0, normalize=False)(PairLogprobs(None, None, response_columns={"embedding": v}))
    tensor([0.2014])
    """

    tau: float = number(0.1, above=0)
    normalize: bool = flag(True)
    gated: bool = flag(False)

    @property
    def needs(self) -> frozenset[str]:
        """The embedding head, and the gate of the prompt where there is one."""
        return frozenset({"embedding", "gate"} if self.gated else {"embedding"})

    def margin(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.response_columns["embedding"]
        if chosen.dim() != 2 or chosen.shape[-1] % 2 or chosen.shape != rejected.shape:
            shapes = f"{list(chosen.shape)} and {list(rejected.shape)}"
            raise ConfigError(f"the loss 'gpm' needs embeddings [pairs, width] of one even width; got {shapes}")
        if self.normalize:
            chosen, rejected = F.normalize(chosen, dim=-1), F.normalize(rejected, dim=-1)
        blocks = chosen[:, 0::2] * rejected[:, 1::2] - chosen[:, 1::2] * rejected[:, 0::2]
        return (blocks * x.pair_columns["gate"] if self.gated else blocks).sum(-1) / self.tau
