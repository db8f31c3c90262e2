"""The estimator of a reward model with several outputs: reliabilities, and the weights of annotators on the groups.

Shapes: P pairs of a micro-batch, V votes of one pair, K annotators, G groups of taste.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.buffer import MarginBuffer
from nemo_rpo.em.collectives import Collectives
from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.reliability import AnnotatorReliability
from nemo_rpo.em.votes import Votes, exactly_summable
from nemo_rpo.errors import ConfigError

_FEWEST_REMEMBERED = 8.0  # labels: of an annotator with fewer, none are forgotten before that many


class TasteReliability(AnnotatorReliability):
    r"""Annotators who belong to one of G groups, each with a truth of its own: a mixture of Bradley-Terry models.

    ::

        P(votes of k) = Σ_g π_g Π_v [η_k σ(s_v Δ_g) + (1-η_k) σ(-s_v Δ_g)]       Δ_g: the margin of head g on v's pair

        E-step   logit w_g = Δ_g/τ + Σ_v W[k_v,g] s_v logit η_v                  truth of a pair for group g
                 log W[k,g] = log π_g + Σ_v log P_g(s_v) + const                 annotator k belongs to group g
        M-step   heads     Σ_g ω_g [-w_g log σ(Δ_g) - (1-w_g) log σ(-Δ_g)]       ω_g: mean of W[k_v,g] over the votes
                 η_k       running mean of Σ_g W[k,g] w_g over k's labels
                 π_g       mean of W[k,g] over the annotators

    P_g(s_v) is what group g expects of a vote before it has been counted: from the head and from the *other* votes on
    the pair, by the weights and reliabilities the step began with. So annotators who share pairs sort themselves before
    the heads know anything, and those who share none sort themselves by the heads. The log-likelihoods of an annotator
    are summed with a forgetting that keeps as many labels as he has in the data; later epochs replace what was thought
    in earlier ones, and nobody's evidence is counted twice. Where W is 0 or 1 this is η_k σ(Σ_g W[k,g] Δ_g) + …; with
    one group it is :class:`AnnotatorReliability`.

    Every rank holds all of W (8 G K bytes); a step adds 8 G K bytes to the sums that travel. The last margin of
    every pair under each head is kept in blocks over the data-parallel ranks, 4 G bytes a pair.

    Attributes:
        weight: W, float64 [K, G], fixed from one commit to the next; rows add up to 1.
        share: π, float64 [G].
        log_odds: float64 [K, G], the sums of log-likelihoods.
    """

    estimator: ClassVar[str] = "taste"

    def __init__(
        self,
        settings: EMSettings,
        start: Tensor,
        labels: Tensor,
        buffers: list[MarginBuffer],
        collectives: Collectives | None = None,
        device: torch.device | str = "cpu",
        begun: str = "",
    ) -> None:
        """``start`` [K, G]: log-odds of the groups to begin with; equal ones could never part. ``labels`` [K]: signed
        labels of each annotator in the data. ``buffers``: of each group, for the margins of this rank's pairs.
        ``begun``: where ``start`` comes from, for people.
        """
        annotators, self.groups = start.shape
        super().__init__(annotators, settings, device)
        if len(buffers) != self.groups:
            raise ConfigError(f"{len(buffers)} buffers of margins for {self.groups} groups")
        self.buffers, self.collectives = buffers, collectives or Collectives()
        self.labels = labels.to(self.label_counts)
        self.pending = torch.zeros(2 + self.groups, annotators, dtype=torch.float64, device=device)
        self.begun = begun
        self.share = torch.full((self.groups,), 1 / self.groups, dtype=torch.float64, device=device)
        self._rows: list[Tensor] = []
        self._set_log_odds(start.to(self.label_counts))

    def _set_log_odds(self, log_odds: Tensor) -> None:
        self.log_odds = log_odds
        self.weight = (self.log_odds + self.share.log()).softmax(-1)
        # Index K stands for whoever has no weights here: the groups' shares.
        self._weight_or_share = torch.cat((self.weight, self.share.unsqueeze(0)))

    def replace_weights(self, weight: Tensor) -> None:
        """Takes weights [K, G] from elsewhere, zeros among them; the shares stay."""
        self._set_log_odds((weight.to(self.share) / self.share).log())

    # --- inside a step

    @torch.no_grad()
    def pair_weight(self, votes: Votes) -> Tensor:
        """ω, the mean of W over a pair's signed votes, float32 [P, G]; the groups' shares where there is none."""
        cast = (votes.sign != 0).double()
        mean = self._of_annotators(votes, cast) / cast.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(votes.has_evidence().unsqueeze(-1), mean, self.share).float()

    def _of_annotators(self, votes: Votes, of_votes: Tensor) -> Tensor:
        """Σ_v ``of_votes`` [P, V] · W[k_v], float64 [P, G]."""
        return (of_votes.unsqueeze(-1) * self._weight_or_share[votes.annotator]).sum(1)

    @torch.no_grad()
    def group_posterior(self, delta: Tensor, votes: Votes) -> Tensor:
        """w_g, the probability that chosen is truly better for group g [P, G], from margins ``delta`` [P, G]."""
        return torch.sigmoid(self._prior(delta) + self._of_annotators(votes, self._evidence(votes)).float())

    def _prior(self, delta: Tensor) -> Tensor:
        return torch.zeros_like(delta) if self.warming_up else delta / self.settings.link_tau

    def _evidence(self, votes: Votes) -> Tensor:
        sign = votes.sign.double()
        return torch.where(sign == 0, 0.0, sign * self._logit_eta_or_start[votes.annotator])

    @torch.no_grad()
    def accumulate_groups(self, pair: Tensor, delta: Tensor, votes: Votes, valid: Tensor) -> None:
        """Adds what a micro-batch says about annotators: margins ``delta`` [P, G] of the pairs with index ``pair`` [P].

        A pair that is not ``valid`` [P], or has a margin that is not finite, is left out.
        """
        delta = delta.detach().float()
        valid = valid & delta.isfinite().all(-1)
        delta = torch.where(valid.unsqueeze(-1), delta, 0.0)
        sign = torch.where(valid.unsqueeze(-1), votes.sign, 0).double()  # float64, so that batching leaves no trace
        votes = votes._replace(sign=sign)
        weight, evidence = self._weight_or_share[votes.annotator], self._evidence(votes)
        of_vote = evidence.unsqueeze(-1) * weight  # [P, V, G]
        others = (self._prior(delta) + of_vote.sum(1)).unsqueeze(1) - of_vote
        agree = sign.unsqueeze(-1) * others
        logit_eta = self._logit_eta_or_start[votes.annotator].double().unsqueeze(-1)
        # log[η σ(m) + (1-η) σ(-m)], and w of the vote itself: σ(m + logit η)
        told = torch.logaddexp(
            F.logsigmoid(logit_eta) + F.logsigmoid(agree), F.logsigmoid(-logit_eta) + F.logsigmoid(-agree)
        )
        right = (weight * torch.sigmoid(agree + logit_eta)).sum(-1)
        sums = torch.stack((right, torch.ones_like(right), *told.unbind(-1))) * (sign != 0)
        sums = torch.stack([exactly_summable(votes.counted(of_vote)).flatten() for of_vote in sums])
        self.pending.index_add_(1, votes.annotator.flatten(), sums)
        index = torch.where(valid, pair, -1).long().unsqueeze(-1).view(torch.int32)
        self._rows.append(torch.cat((index, delta.view(torch.int32)), -1))

    def accumulate(self, w: Tensor, votes: Votes, valid: Tensor) -> None:
        """Nothing: one posterior a pair does not say whom it is about; see :meth:`accumulate_groups`."""

    def exchange(self, gather_rows: Callable[[Tensor], Tensor]) -> None:
        """Brings this step's margins to every rank: int32 [r, 2+G] -> [R, 2+G], 4 (2+G) bytes a pair; no gradient."""
        empty = torch.empty(0, 2 + self.groups, dtype=torch.int32, device=self.eta.device)
        self._rows = [gather_rows(torch.cat((empty, *self._rows)))]

    @torch.no_grad()
    def commit(self) -> None:
        """As :meth:`AnnotatorReliability.commit`, then the weights: evidence of the step, shares, W."""
        for rows in self._rows:
            index, margins = rows[:, :2].reshape(-1).view(torch.int64), rows[:, 2:].contiguous().view(torch.float32)
            for buffer, of_group in zip(self.buffers, margins.unbind(-1), strict=True):
                buffer.record(index, of_group, keep_first=False)
        self._rows = []
        _, labels, *told = self.pending.clone()
        warming_up = self.warming_up
        self._commit_eta()
        if not warming_up:
            kept = (1 - 1 / self.labels.clamp(min=_FEWEST_REMEMBERED)) ** labels
            known = self.label_counts > 0
            mean = (self.weight * known.unsqueeze(-1)).sum(0)
            self.share = (mean + 1) / (known.sum() + self.groups)
            log_odds = self.log_odds * kept.unsqueeze(-1) + torch.stack(told, -1)
            self._set_log_odds(log_odds - log_odds.logsumexp(-1, keepdim=True))

    def _commit_eta(self) -> None:
        """The base class's commit on the first two rows of the sums, which are all that it knows."""
        everything, self.pending = self.pending, self.pending[:2]
        super().commit()
        self.pending = everything
        self.pending.zero_()

    def rollback(self) -> None:
        super().rollback()
        self._rows = []

    # --- state

    def shared_state(self) -> dict[str, Tensor]:
        if self._rows:
            raise RuntimeError("the EM state was asked for inside a step: commit or roll back first")
        taste = {"taste_log_odds": self.log_odds, "taste_share": self.share}
        return super().shared_state() | {name: values.clone() for name, values in taste.items()}

    def blocks(self) -> dict[str, MarginBuffer]:
        return {f"margins_of_group_{g}": buffer for g, buffer in enumerate(self.buffers, start=1)}

    def load_shared_state(self, state: dict[str, Tensor]) -> None:
        super().load_shared_state(state)
        self._rows = []
        self.share = state["taste_share"].to(self.share, copy=True)
        self._set_log_odds(state["taste_log_odds"].to(self.log_odds))

    def margins(self) -> Tensor:
        """Of all pairs, Δ_g when the pair was seen last, float32 [n, G]; NaN where it was not.

        One gather of 4 G bytes a pair over the ranks that hold different pairs.
        """
        return self.collectives.gather_rows(torch.stack([buffer.margins for buffer in self.buffers], -1))

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`AnnotatorReliability.state_dict`, with the ``margins`` of all pairs; collective."""
        return {**super().state_dict(), "margins": self.margins()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for buffer, margins in zip(self.buffers, state["margins"].unbind(-1), strict=True):
            buffer.load(margins)
