"""What a preference loss is: L(w≻l) for every pair, and the loss of the same pair with the label turned round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.losses.options import check_options, choice
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.reduction import Mean, Reduction


@dataclass(frozen=True)
class LossTerms:
    r"""Both directions of a loss, and the link that turns it into a probability; all [pairs], with gradient.

    Attributes:
        chosen: L(w≻l), the loss if the label is right, without its anchor.
        rejected: L(l≻w), the loss of the same pair turned round; never obtained by negating a margin.
        delta: Δ, the log-odds that the loss gives the label: p = σ(Δ). L(l≻w) - L(w≻l), by its closed form where the
            difference would cancel. Where ``exact``, log odds of the normalised preference probability.
        exact: the loss is a negative log-likelihood of the two outcomes, times an importance that is no part of the
            link (ORPO's λ, the strength in scaled Bradley-Terry). Then Z ≡ 1, and the induced objective is
            ``w chosen + (1-w) rejected``, whose gradients are right even where turning the pair round moves a
            stop-gradient (TDPO2).
        anchor_chosen, anchor_rejected: a term that is no preference (the NLL of CPO and ORPO) of either response, kept
            out of the link and weighted by the posterior of its side; or None.
    """

    chosen: Tensor
    rejected: Tensor
    delta: Tensor
    exact: bool
    anchor_chosen: Tensor | None = None
    anchor_rejected: Tensor | None = None

    def log_z(self) -> Tensor:
        """log Z = log(e^{-L(w≻l)} + e^{-L(l≻w)}) [pairs]; 0 where the loss is ``exact``.

        Z is what separates the two robust objectives: induced - weighted = log Z.
        """
        if self.exact:
            return torch.zeros_like(self.chosen)
        return torch.logaddexp(-self.chosen, -self.rejected)


@dataclass(frozen=True)
class PreferenceLoss(ABC):
    """A loss of preference pairs: its fields are its options, the call is a pure function [pairs] -> [pairs].

    A subclass gives :meth:`pair`, declares what it needs, and is entered in the registry; see ``registry.py``.

    Attributes:
        name: the registry's name.
        needs: what a batch must hold: ``policy``, ``reference``, ``lengths``, and side columns by name.
        exact: see :class:`LossTerms`.
        models_noise: it already corrects for label noise, so the EM on top would correct twice.
        needs_link_tau: its native scale makes every posterior 0 or 1 under a link of temperature 1.
        takes_ties: it has a value for rows where ``tie`` is 1; other losses must not be given such rows.
        listwise: it has a value for rankings as wholes, see :class:`nemo_rpo.losses.ListwiseLoss`; any other loss takes
            a ranking as its pairs, and so does every loss under the EM.
        unpaired: it takes completions judged alone, each a pair whose other side is absent
            (:mod:`nemo_rpo.losses.families.unpaired`); any other loss takes pairs.
        groups: how many truths a pair may have, one for each group of annotators; more than one only for ``pal``.
        reduction: how the losses of pairs become the loss of the global batch.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference"})
    exact: ClassVar[bool] = False
    models_noise: ClassVar[bool] = False
    needs_link_tau: ClassVar[bool] = False
    takes_ties: ClassVar[bool] = False
    listwise: ClassVar[bool] = False
    unpaired: ClassVar[bool] = False
    groups: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_options(self, f"the loss '{self.name}'")

    def __call__(self, x: PairLogprobs) -> Tensor:
        """L(w≻l) with its anchor [pairs]: what is trained on when every label is believed."""
        x.require(self.needs, self.name)
        loss, anchor = self.pair(x), self.anchor(x)
        return loss if anchor is None else loss + anchor

    def terms(self, x: PairLogprobs) -> LossTerms:
        """Both directions and the link [pairs]: what the EM needs."""
        x.require(self.needs, self.name)
        turned = x.swapped()
        chosen, rejected = self.pair(x), self.pair(turned)
        delta = self.delta(x)
        return LossTerms(
            chosen=chosen,
            rejected=rejected,
            delta=rejected - chosen if delta is None else delta,
            exact=self.exact,
            anchor_chosen=self.anchor(x),
            anchor_rejected=self.anchor(turned),
        )

    @abstractmethod
    def pair(self, x: PairLogprobs) -> Tensor:
        """L(w≻l) without its anchor [pairs]."""

    def anchor(self, x: PairLogprobs) -> Tensor | None:
        """The term of the chosen response that is no preference [pairs], or None."""
        return None

    def delta(self, x: PairLogprobs) -> Tensor | None:
        """Closed form of Δ [pairs], or None where the plain difference L(l≻w) - L(w≻l) is as good."""
        return None

    @property
    def reduction(self) -> Reduction:
        """How the losses of pairs become the loss of the global batch: their mean."""
        return Mean()

    @property
    def reference_free(self) -> bool:
        """No frozen policy is compared with, so Δ ≠ 0 before the first step: warm the E-step up."""
        return not self.needs & {"reference", "base_logps"}


@dataclass(frozen=True)
class LogisticLoss(PreferenceLoss):
    """L = -log σ(u) of a margin u that changes its sign when the pair is turned round: a true likelihood, Z ≡ 1."""

    exact: ClassVar[bool] = True

    @abstractmethod
    def margin(self, x: PairLogprobs) -> Tensor:
        """u, the log-odds that chosen beats rejected [pairs]."""

    def pair(self, x: PairLogprobs) -> Tensor:
        return -F.logsigmoid(self.margin(x))

    def delta(self, x: PairLogprobs) -> Tensor:
        return self.margin(x)


@dataclass(frozen=True)
class AnchoredLoss(PreferenceLoss):
    """A preference loss with an anchor.

    Options:
        link_terms: ``preference_only`` keeps the anchor out of the probability that the loss induces. ``all`` is the
            letter of RE-PO's Eq. 2; with summed log-probs the likelihood of the longer response then decides which
            label is doubted.
    """

    link_terms: str = choice("preference_only", "all")

    def terms(self, x: PairLogprobs) -> LossTerms:
        """Those of the loss; with ``link_terms: all`` the anchors count on both sides and in the link."""
        terms = super().terms(x)
        if self.link_terms == "preference_only" or terms.anchor_chosen is None:
            return terms
        chosen, rejected = terms.chosen + terms.anchor_chosen, terms.rejected + terms.anchor_rejected
        return replace(
            terms,
            chosen=chosen,
            rejected=rejected,
            delta=rejected - chosen,
            exact=False,
            anchor_chosen=None,
            anchor_rejected=None,
        )
