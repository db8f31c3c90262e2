"""The M-step of the annotators: running reliabilities, moved once per optimizer step (RE-PO, Algorithm 1).

The order inside a step is: posteriors from the η that the step began with, accumulation over its micro-batches, one sum
over the ranks that hold different pairs, and ``commit`` together with the optimizer step, or ``rollback`` with a
skipped one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.belief import Belief
from nemo_rpo.em.collectives import Collectives
from nemo_rpo.em.e_step import vote_evidence
from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.fit.sweep import SweepResult, full_batch_em
from nemo_rpo.em.voice import Voice
from nemo_rpo.em.votes import Votes, exactly_summable
from nemo_rpo.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from nemo_rpo.em.buffer import MarginBuffer
    from nemo_rpo.em.fit.evidence import Evidence
    from nemo_rpo.em.fit.full_fit import Estimate
    from nemo_rpo.em.label_model.of_run.look_back import LookBack
    from nemo_rpo.em.label_model.of_run.run_label_model import RunLabelModel


class Fit(NamedTuple):
    """What the full-batch EM found, the settings (prior, ``link_tau``) that it ended with, and whether the temperature
    among them was fitted to the same margins.
    """

    result: SweepResult
    settings: EMSettings
    scale_fitted: bool = False


class AnnotatorReliability:
    """The reliability η_k = P(a label of annotator k is right) of K annotators, and the evidence for it.

    Nothing here waits for the device: no ``.item()``, and no loop over annotators or pairs.

    Attributes:
        eta: float64 [K], fixed from one commit to the next.
        logit_eta: float32 [K], what the E-step reads.
        label_counts: float64 [K], labels committed so far (warm-up steps are not evidence and do not count).
        right_sums: float64 [K], sum of their posteriors of being right.
        step: optimizer steps committed so far.
        belief: where η started, and the known answers behind it, which every fit counts beside the labels.
        pending: float64 [2, K], this step's sums of right posteriors and of labels. Summed in place over the
            data-parallel group before ``commit``: by :meth:`reduce`, or inside a collective of the engine's own. The
            sums are exact (:func:`nemo_rpo.em.votes.exactly_summable`), so batching and layout leave no trace in them.
    """

    estimator: ClassVar[str] = "ema"  # what ``model.rpo.estimator`` calls it
    estimate: Estimate | None = None  # the EMA fits nothing
    label_model: RunLabelModel | None = None
    pair_evidence: Tensor | None = None
    coefficients: Mapping[str, tuple[Tensor, Tensor]] = MappingProxyType({})

    def __init__(
        self,
        num_annotators: int,
        settings: EMSettings,
        device: torch.device | str = "cpu",
        belief: Belief | None = None,
    ) -> None:
        """``belief``: what is known of the annotators already; None: nothing, and all start at ``eta_init``."""
        if num_annotators < 1:
            raise ConfigError(f"the EM needs at least one annotator, got {num_annotators}")
        settings.validate()
        self.settings = settings
        self.pending = torch.zeros(2, num_annotators, dtype=torch.float64, device=device)
        self.label_counts = torch.zeros(num_annotators, dtype=torch.float64, device=device)
        self.right_sums = torch.zeros(num_annotators, dtype=torch.float64, device=device)
        self.step = 0
        self.voice = Voice(settings.link_tau, device)
        self.belief = (belief or Belief.none(num_annotators, settings.eta_init)).to(device)
        self.replace(self.belief.start)

    @property
    def num_annotators(self) -> int:
        """K."""
        return self.label_counts.numel()

    @property
    def warming_up(self) -> bool:
        """Whether the step under way is one of the ``warmup_steps``, in which the E-step ignores the model."""
        return self.step < self.settings.warmup_steps

    @torch.no_grad()
    def posterior(self, delta: Tensor, votes: Votes, pair: Tensor | None = None) -> Tensor:
        """w [P] = σ(voice(Δ) + E), E being :meth:`evidence`; during warm-up with Δ = 0. In ``delta``'s dtype, at least
        float32.
        """
        dtype = torch.promote_types(delta.dtype, torch.float32)
        margin = torch.zeros_like(delta) if self.warming_up else delta
        of_policy = self.voice(margin.to(dtype), (votes.sign != 0).sum(-1) > 1)
        return torch.sigmoid(of_policy + self.evidence(votes, pair, dtype))

    @torch.no_grad()
    def bounded(self, votes: Votes, pair: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q = σ(E) [P] and u [] of :func:`nemo_rpo.em.objective.bounded_loss`, E being :meth:`evidence`."""
        return torch.sigmoid(self.evidence(votes, pair)), self.voice.sharpness()

    @torch.no_grad()
    def evidence(self, votes: Votes, pair: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """E [P], the log-odds that all but the policy gives chosen: Σ_v s_v logit η_v of the ``votes`` [P, V].

        In evaluation, index K stands for whoever has no η here, and is as reliable as all were at the start. A running
        mean knows annotators, and no ``pair`` [P] (see :meth:`nemo_rpo.em.pair_step.EStep.posterior`).
        """
        return vote_evidence(votes, self._logit_eta_or_start, dtype)

    @torch.no_grad()
    def accumulate(self, w: Tensor, votes: Votes, valid: Tensor) -> None:
        """Adds a micro-batch to ``pending``: a vote is right with probability w if it says chosen, 1-w if rejected.

        Args:
            w: posteriors [P] of the step's E-step.
            votes: labels [P, V]; ties and padding (sign 0) are left out, and each of the others counts for its weight.
            valid: bool [P]; pairs that carry no evidence (truncated away, padding of the last batch) are left out, as
                are those whose posterior is NaN.
        """
        sign = torch.where((valid & ~w.isnan()).unsqueeze(-1), votes.sign, 0)
        agreed = w.double().unsqueeze(-1)
        # where and not a product: an invalid row may hold any margin, NaN included.
        right = torch.where(sign > 0, agreed, torch.where(sign < 0, 1 - agreed, 0.0))
        labels = (sign != 0).double()
        columns = torch.stack([exactly_summable(votes.counted(of_vote)).flatten() for of_vote in (right, labels)])
        self.pending.index_add_(1, votes.annotator.flatten(), columns)

    def observe(self, pair: Tensor, delta: Tensor, valid: Tensor) -> None:
        """Offers the margins of a micro-batch ``pair`` (index in the data set), [P] each; the EMA keeps none."""

    def reduce(self, all_reduce: Callable[[Tensor], None]) -> None:
        """Sums ``pending`` over the ranks that hold different pairs; ``all_reduce`` sums a tensor in place.

        One collective of 16 K bytes, not differentiable. Data-parallel ranks only: tensor and context ranks hold copies
        of the same pairs, and of the pipeline stages only the last one has seen a loss.
        """
        all_reduce(self.pending)

    def exchange(self, gather_rows: Callable[[Tensor], Tensor]) -> None:
        """Brings the margins observed in this step to every rank; the EMA has none, and issues no collective."""

    @torch.no_grad()
    def commit(self) -> None:
        r"""Moves the annotators that occurred in this step, and clears ``pending``.

        η_k ← (1-α_k) η_k + α_k · mean(right posteriors of k), with α_k = α, or 1-(1-α)^{n_k/n₀} under
        ``alpha_per_labels`` = n₀; then clamp and floor. A warm-up step only counts as a step.
        """
        if not self.warming_up:
            right, labels = self.pending
            settings = self.settings
            if settings.alpha_per_labels is None:
                rate = torch.full_like(labels, settings.alpha)
            else:
                rate = 1 - (1 - settings.alpha) ** (labels / settings.alpha_per_labels)
            moved = torch.lerp(self.eta, right / labels.clamp(min=1), rate)
            self.replace(torch.where((labels > 0) & (not settings.freeze_eta), moved, self.eta))
            self.label_counts = self.label_counts + labels
            self.right_sums = self.right_sums + right
        self.step += 1
        self.pending.zero_()

    def fit(self, delta: Tensor, votes: Votes, collectives: Collectives | None = None) -> Fit:
        """The exact full-batch EM on all margins [P] and labels [P, V] of this rank, taken at one set of weights.

        η itself stays as it is.

        The collectives of :func:`nemo_rpo.em.fit.sweep.full_batch_em`.
        """
        all_reduce = (collectives or Collectives()).all_reduce
        result = full_batch_em(delta, votes, self.eta, self.settings, all_reduce, self.belief.known)
        return Fit(result, self.settings)

    def look_back(self) -> LookBack | None:
        """Nothing: a running mean keeps no margins from before."""
        return None

    def settle(self) -> None:
        """After the last step of a run: takes in what the steps since the last fit have brought; the EMA has none."""

    def rollback(self) -> None:
        """Forgets this step's sums: the optimizer skipped the step, or it will be run again."""
        self.pending.zero_()

    @torch.no_grad()
    def replace(self, eta: Tensor) -> None:
        """Takes reliabilities [K] from elsewhere (a sweep), within clamp and floor."""
        lower, upper = self.settings.eta_bounds
        self.eta = eta.to(self.label_counts).clamp(lower, upper)
        self.logit_eta = torch.logit(self.eta).float()
        start = self.settings.eta_init
        self._logit_eta_or_start = F.pad(self.logit_eta, (0, 1), value=math.log(start / (1 - start)))

    def findings(self) -> tuple[Tensor, Evidence] | None:
        """Standard errors and evidence of a fit to margins; a running mean knows neither."""
        return None

    def shared_state(self) -> dict[str, Tensor]:
        """The state that is the same on every rank, by name: float64 [K], and ``step`` int64 [1].

        Valid between steps, when nothing is pending. No collective.
        """
        if self.pending.any():
            raise RuntimeError("the EM state was asked for inside a step: commit or roll back first")
        return {
            "eta": self.eta.clone(),
            "label_counts": self.label_counts.clone(),
            "right_sums": self.right_sums.clone(),
            "step": torch.tensor([self.step]),
        }

    def blocks(self) -> dict[str, MarginBuffer]:
        """The state of pairs that is divided among the ranks, by name; the EMA has none."""
        return {}

    def load_shared_state(self, state: dict[str, Tensor]) -> None:
        """Restores :meth:`shared_state` bit for bit; :class:`CheckpointError` if K differs."""
        saved = state["eta"].numel()
        if saved != self.num_annotators:
            raise CheckpointError(f"the checkpoint knows {saved} annotators, the data {self.num_annotators}")
        self.replace(state["eta"])
        self.label_counts = state["label_counts"].to(self.label_counts, copy=True)
        self.right_sums = state["right_sums"].to(self.right_sums, copy=True)
        self.step = int(state["step"])
        self.pending.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The whole state on every rank, for hosts that store it in one file."""
        return {**self.shared_state(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; errors of :meth:`load_shared_state`."""
        self.load_shared_state(state)
