"""One pair step: from the log-probs of labelled pairs to their losses, and to what their labels say about annotators.

Every trainer calls this and keeps no copy. A trainer supplies the pairs as a loss sees them, who said what, which pairs
are valid, and its estimator; it gets unreduced losses back, and adds them up over its micro-batches and ranks.

Shapes: P pairs of a micro-batch, V votes of one pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nemo_rpo.em.em_settings import Objective
from nemo_rpo.em.groups.group_step import group_preference
from nemo_rpo.em.objective import bounded_loss, robust_loss
from nemo_rpo.em.votes import Votes
from nemo_rpo.losses import LossTerms, PairLogprobs, PreferenceLoss, RankingLogprobs


class EStep(Protocol):
    """What the step asks an estimator for; :class:`nemo_rpo.em.AnnotatorReliability` is one."""

    def bounded(self, votes: Votes, pair: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q [P] and u [] of :func:`nemo_rpo.em.objective.bounded_loss`."""
        ...

    def posterior(self, delta: Tensor, votes: Votes, pair: Tensor | None = None) -> Tensor:
        """w [P], the probability that chosen is truly better, without gradient; ``pair`` int64 [P]: the index of each
        pair in the training data (negative: of none), or None for pairs that are not training pairs."""
        ...


class Learner(EStep, Protocol):
    """An estimator that learns from the posteriors and margins of a training step."""

    def accumulate(self, w: Tensor, votes: Votes, valid: Tensor) -> None:
        """Adds posteriors ``w`` [P] to the step's sums by annotator."""
        ...

    def observe(self, pair: Tensor, delta: Tensor, valid: Tensor) -> None:
        """Takes the margins ``delta`` [P] of the pairs with index ``pair`` [P] in the data."""
        ...


@dataclass(frozen=True)
class PairLosses:
    """What a step makes of each pair; all [P], and only losses and what follows from them have a gradient.

    Attributes:
        delta: Δ, the log-odds that the policy gives the label.
        w: posterior that chosen is truly better; without an estimator the share of votes that say so.
        preference: the robust preference loss.
        sft: ``w nll(chosen) + (1-w) nll(rejected)``; 0 where there are no log-probs.
        loss: both, by their weights.
        surrogate, statistic: s(loss) and t(loss) of the loss's reduction, see
            :class:`nemo_rpo.losses.reduction.Reduction`.
        counts_for: what the pair counts for in means over pairs: 0 if not valid, else 1, or the pair's weight where it
            is one of a ranking's.
        objective: ``counts_for · surrogate``, 0 where not valid: to be summed over the global batch and
            back-propagated, then divided by the sum of ``counts_for · statistic``.
    """

    delta: Tensor
    w: Tensor
    preference: Tensor
    sft: Tensor
    loss: Tensor
    surrogate: Tensor
    statistic: Tensor
    counts_for: Tensor
    objective: Tensor


@dataclass(frozen=True)
class PairStep:
    r"""The loss of a step, pair by pair.

    ::

        Δ           = L(l≻w) - L(w≻l)                                the loss, both ways round
        w           = σ(Δ/τ + E)                                     the E-step; share of the votes without an estimator
        preference  = -w log σ(Δ) - (1-w) log σ(-Δ)                  induced, or
                       w L(w≻l) + (1-w) L(l≻w)                       weighted, or
                       log 2 - (2q - 1) tanh(uΔ/2) / u               bounded, q = σ(E), u how large margins are
        sft         = -w log π(chosen) - (1-w) log π(rejected)       summed over tokens, or their mean
        loss        = preference_weight · preference + sft_weight · sft

    E is the evidence of everything but the policy: Σ_v s_v logit η_v, or what the label model makes of the pair, which
    an estimator looks up by the pair's index in the data (:meth:`EStep.posterior`).

    Two cases stand apart. A pair on which nobody took a side (a tie, which only some losses take) has no label to
    doubt, and the induced objective would learn nothing from it: its preference loss is the weighted one. A loss with
    several groups has a truth for each (:func:`nemo_rpo.em.groups.group_preference`). And a loss of
    rankings, with no estimator to doubt their pairs, takes each ranking as a whole; every pair of a ranking then has
    the ranking's loss, of which its weight is its share.

    No collective, no wait for the device, no state: what a step teaches goes to the estimator (:func:`add_evidence`).

    Attributes:
        loss: the base loss.
        objective: which of the preference losses the EM minimises.
        preference_weight, sft_weight: of the two terms.
        average_sft: the SFT term is a mean over tokens.
    """

    loss: PreferenceLoss
    objective: Objective
    preference_weight: float
    sft_weight: float
    average_sft: bool

    def __call__(
        self,
        x: PairLogprobs,
        votes: Votes,
        valid: Tensor,
        em: EStep | None,
        learn_from: Tensor | None = None,
        ranking_size: Tensor | None = None,
    ) -> PairLosses:
        """The losses of one micro-batch.

        Args:
            x: the pairs as a loss sees them. votes: their labels.
            valid: bool [P]; other pairs carry no evidence and count nowhere, whatever they hold.
            em: gives the posteriors; None where the EM is off and every label is taken at its word.
            learn_from: in training, the index of each pair in the data, int64 [P], by which its evidence is looked up;
                what the step teaches is added to ``em``, a :class:`Learner`. None in evaluation.
            ranking_size: responses of each ranking [prompts], where the pairs are those of rankings.
        """
        terms = self.loss.terms(x)
        delta = terms.delta.detach()
        if em is not None and self.loss.groups > 1:
            preference, w = group_preference(self.loss, x, votes, valid, em, learn_from)
        else:
            w = votes.share() if em is None else em.posterior(delta, votes, learn_from)
            preference = self._preference(x, terms, w, votes, em, learn_from, ranking_size)
        sft = torch.zeros_like(preference) if x.policy_chosen is None else self._sft(x, w)
        loss = self.preference_weight * preference
        if self.sft_weight:  # else a likelihood of 0 would still make the loss NaN
            loss = loss + self.sft_weight * sft
        if em is not None and learn_from is not None:
            add_evidence(em, learn_from, w, delta, votes, valid)
        counts_for, surrogate = votes.counted(valid.to(loss.dtype)), self.loss.reduction.surrogate(loss)
        return PairLosses(
            delta=delta,
            w=w,
            preference=preference,
            sft=sft,
            loss=loss,
            surrogate=surrogate,
            statistic=self.loss.reduction.statistic(loss),
            counts_for=counts_for,
            # where and not a product alone: 0 · inf of a pair that is not valid would be NaN.
            objective=torch.where(valid, counts_for * surrogate, 0.0),
        )

    def _preference(
        self,
        x: PairLogprobs,
        terms: LossTerms,
        w: Tensor,
        votes: Votes,
        em: EStep | None,
        pair: Tensor | None,
        ranking_size: Tensor | None,
    ) -> Tensor:
        objective = "weighted" if em is None else self.objective
        if objective == "bounded":
            preference = bounded_loss(terms, *em.bounded(votes, pair), w)
        else:
            preference = robust_loss(terms, w, objective)
        if self.loss.listwise and em is None and ranking_size is not None:
            of_rankings = self.loss.ranking(RankingLogprobs.joined(x, ranking_size))
            preference = of_rankings.repeat_interleave(len(w) // len(ranking_size))
        if self.loss.takes_ties:
            preference = torch.where(votes.has_evidence(), preference, robust_loss(terms, w, "weighted"))
        return preference

    def _sft(self, x: PairLogprobs, w: Tensor) -> Tensor:
        """The negative log-likelihood [P] of the response believed to be better."""
        chosen, rejected = x.mean_policy() if self.average_sft else x.policy()
        return -(w * chosen + (1 - w) * rejected)


def add_evidence(em: Learner, pair: Tensor, w: Tensor, delta: Tensor, votes: Votes, valid: Tensor) -> None:
    """Adds the evidence of a micro-batch to the step's: posteriors ``w`` [P] and margins ``delta`` [P] of the pairs
    with index ``pair`` int64 [P] in the data, their ``votes`` [P, V], and which are ``valid`` [P].

    An estimator uses one or the other: sums of posteriors by annotator (``ema``), or margins by pair (``buffer``).
    A margin that is not finite is no evidence. Nothing is learnt before it commits. No collective.
    """
    valid = valid & delta.isfinite()
    em.accumulate(w, votes, valid)
    em.observe(pair, delta, valid)
