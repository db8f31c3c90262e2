"""``estimator: buffer``: reliabilities from the margins of all pairs seen, refitted together now and then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from nemo_rpo.em.belief import Belief
from nemo_rpo.em.collectives import Collectives
from nemo_rpo.em.e_step import vote_evidence
from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.fit.empirical_bayes import Population
from nemo_rpo.em.fit.evidence import Evidence, evidence_of
from nemo_rpo.em.fit.full_fit import Estimate, estimate, of_first_rank
from nemo_rpo.em.fit.standard_error import skewed, standard_errors
from nemo_rpo.em.fit.sweep import full_batch_em
from nemo_rpo.em.label_model.coded_votes import SKILL
from nemo_rpo.em.label_model.of_run.look_back import LookBack
from nemo_rpo.em.reliability import AnnotatorReliability, Fit
from nemo_rpo.em.voice import Voice
from nemo_rpo.em.votes import Votes
from nemo_rpo.errors import CheckpointError, ConfigError

# The first step with a refit; and how many times as many steps lie behind a refit as from one to the next, at most.
_FIRST_REFIT, _STEPS_A_REFIT = 8, 8
_VOICE, _POPULATION = "voice", "population"
_LABEL_MODEL, _EVIDENCE = "label_model.", "label_model.evidence"


class MarginBuffer:
    """One margin of every pair, in contiguous blocks over the data-parallel ranks: 4 bytes a pair.

    Attributes:
        num_pairs: pairs of the whole data set.
        offset: first pair of this rank's block.
        margins: float32 [block], NaN where the pair has not been seen.
    """

    def __init__(self, num_pairs: int, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu") -> None:
        block = -(-num_pairs // world_size)
        self.num_pairs = num_pairs
        self.offset = min(rank * block, num_pairs)
        size = min(block, num_pairs - self.offset)
        # One slot more than pairs: rows of other ranks are written there instead of being selected away, which would
        # wait for the device.
        self._slots = torch.full((size + 1,), float("nan"), device=device)

    @property
    def margins(self) -> Tensor:
        """float32 [block], a view: NaN where the pair has not been seen."""
        return self._slots[:-1]

    @property
    def block(self) -> slice:
        """This rank's pairs, as a slice of the data set."""
        return slice(self.offset, self.offset + len(self.margins))

    def record(self, pair: Tensor, delta: Tensor, keep_first: bool) -> None:
        """Stores the margins of a global batch, every rank keeping its own block.

        Args:
            pair: int64 [R], index in the data set; -1 for rows to be left out. A pair that occurs twice has one margin.
            delta: float32 [R].
            keep_first: leave pairs that have a margin as they are.
        """
        local = pair - self.offset
        mine = (pair >= 0) & (local >= 0) & (local < len(self.margins))
        slot = torch.where(mine, local, len(self.margins))
        known = self._slots[slot]
        self._slots[slot] = torch.where(known.isnan(), delta, known) if keep_first else delta

    def load(self, margins: Tensor) -> None:
        """Takes this rank's block out of the ``margins`` of all pairs; :class:`CheckpointError` if they do not fit."""
        if len(margins) != self.num_pairs:
            raise CheckpointError(f"the checkpoint has margins of {len(margins)} pairs, the data {self.num_pairs}")
        self.margins.copy_(margins[self.block])


class BufferedReliability(AnnotatorReliability):
    """Reliabilities that are estimated from all margins so far instead of being remembered from step to step.

    Drop-in for :class:`AnnotatorReliability`: between refits η stands still, ``accumulate`` has nothing to add, and a
    step's rows travel as 12 bytes a pair (:meth:`observe`, :meth:`exchange`) whatever the number of annotators. At
    commits 8, 16, 32, … and every ``refit_every``, :func:`nemo_rpo.em.fit.full_fit.estimate` runs on the buffer. The
    fitted temperature is the policy's in the E-step too: margins from before training show what it is worth, and where
    they are no better than chance, or of a scale that the votes do not tell, it has no voice.

    One annotator (labels without ids) is not told from his opposite by anything but the policy, so without known
    answers his reliability is kept at ½ or above, and what the bounded loss learns from does not depend on it.

    Where the data know more of a vote than who cast it, a :attr:`label_model` is refitted with the margins as the
    pairs' prior. While it is in force, η is what it says of an annotator over all his votes, and the E-step of a
    training pair looks its evidence up by the pair's index.

    Every rank has to commit the same steps, since a refit issues collectives.

    Attributes:
        estimate: the last refit, or None before the first.
        label_model: None where there is nothing for it to say.
        pair_evidence: E of all pairs of the data, float32 [num_pairs]; None while the label model is not in force.
        coefficients: by feature of the label model in force, coefficients and their standard errors, float64 [K] each;
            empty before the first refit of this process.
    """

    estimator: ClassVar[str] = "buffer"

    def __init__(
        self,
        num_annotators: int,
        settings: EMSettings,
        buffer: MarginBuffer,
        votes: Votes,
        collectives: Collectives | None = None,
        device: torch.device | str = "cpu",
        belief: Belief | None = None,
    ) -> None:
        """``votes``: labels of the pairs of ``buffer.block`` [block, V]; may be memory-mapped. ``belief``: as in
        :class:`AnnotatorReliability`.
        """
        super().__init__(num_annotators, settings, device, belief)
        self._known = (self.belief.certain() if settings.freeze_eta else self.belief).known
        self.pending = self.pending[:, :0].clone()  # no sums per annotator travel
        if len(votes.sign) != len(buffer.margins):
            raise ConfigError(f"votes of {len(votes.sign)} pairs for a buffer of {len(buffer.margins)}")
        self._fitting = settings
        if num_annotators == 1 and settings.eta_floor is None:
            self._fitting = replace(settings, eta_floor=0.5, eta_init=max(0.5, settings.eta_init))
        self.buffer, self.votes, self.collectives = buffer, votes, collectives or Collectives()
        self.voice = Voice(settings.link_tau, device, buffer.num_pairs)
        self.estimate: Estimate | None = None
        self.pair_evidence: Tensor | None = None
        self.coefficients: dict[str, tuple[Tensor, Tensor]] = {}
        self._rows: list[Tensor] = []
        self._refitted_at = -1
        self._near: Population | None = None

    @torch.no_grad()
    def evidence(self, votes: Votes, pair: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """As :meth:`AnnotatorReliability.evidence`; of training pairs what the label model says, if it is in force."""
        of_votes = super().evidence(votes, pair, dtype)
        if pair is None or self.pair_evidence is None:
            return of_votes
        return torch.where(pair >= 0, self.pair_evidence[pair.clamp(min=0)].to(dtype), of_votes)

    @torch.no_grad()
    def bounded(self, votes: Votes, pair: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`AnnotatorReliability.bounded`; of one annotator alone q is that of his start, because a factor on
        all pairs alike teaches nothing, and one that follows his estimate could turn round with it.
        """
        if self.num_annotators > 1 or self.pair_evidence is not None:
            return super().bounded(votes, pair)
        start = torch.logit(self.belief.start).float().expand_as(self._logit_eta_or_start)
        return torch.sigmoid(vote_evidence(votes, start)), self.voice.sharpness(alone=True)

    def accumulate(self, w: Tensor, votes: Votes, valid: Tensor) -> None:
        """Nothing: the buffer recomputes the posteriors of all pairs at every refit."""

    @torch.no_grad()
    def observe(self, pair: Tensor, delta: Tensor, valid: Tensor) -> None:
        """Notes the margins ``delta`` [P] of a micro-batch of pairs; ``pair`` [P] is the index in the data set."""
        index = torch.where(valid & delta.isfinite(), pair, -1).long()
        columns = (index.unsqueeze(-1).view(torch.int32), delta.float().unsqueeze(-1).view(torch.int32))
        self._rows.append(torch.cat(columns, -1))

    def exchange(self, gather_rows: Callable[[Tensor], Tensor]) -> None:
        """Brings this step's rows to every rank: int32 [r, 3] -> [R, 3], 12 bytes a pair; not differentiable.

        The engine's ``gather_rows`` concatenates over data-parallel ranks and broadcasts from the last pipeline stage.
        """
        empty = torch.empty(0, 3, dtype=torch.int32, device=self.eta.device)
        self._rows = [gather_rows(torch.cat((empty, *self._rows)))]

    @torch.no_grad()
    def commit(self) -> None:
        """Stores the step's margins, and refits when it is time (then with the collectives of :func:`estimate`)."""
        for rows in self._rows:
            index, delta = rows[:, :2].reshape(-1).view(torch.int64), rows[:, 2].contiguous().view(torch.float32)
            keep_first = self.settings.buffer.margins == "prequential"
            self.buffer.record(index, delta, keep_first)
            self.voice.hear(delta, index >= 0)
        self._rows = []
        self.step += 1
        if self._refit_is_due():
            self.refit()

    def _refit_is_due(self) -> bool:
        # Early on every step adds much to what is known, and waiting for refit_every would train on the start's η.
        # Late, an eighth of all first margins may go unread for a while.
        early = self.step >= _FIRST_REFIT and self.step & (self.step - 1) == 0
        every = self.settings.buffer.refit_every
        if self.settings.buffer.margins == "prequential":
            every <<= max(0, (self.step // (_STEPS_A_REFIT * every)).bit_length() - 1)
        return not self.warming_up and (early or self.step % every == 0)

    def rollback(self) -> None:
        self._rows = []

    def fit(self, delta: Tensor, votes: Votes, collectives: Collectives | None = None) -> Fit:
        """As :meth:`AnnotatorReliability.fit`, with prior and temperature fitted too where the margins tell them. Where
        nothing is to be learnt from these margins, η as it is.

        The collectives of :func:`estimate`, and then those of no iteration of :func:`full_batch_em`.
        """
        found = estimate(delta, votes, self.eta, self._fitting, collectives or self.collectives, self._known)
        fitted, scale_fitted = self._as_fitted(found), found.temperature.fitted
        if found.sweep is not None:
            return Fit(found.sweep, fitted, scale_fitted)
        still = replace(fitted, sweep_max_iterations=0)
        reduce = (collectives or self.collectives).all_reduce
        return Fit(full_batch_em(delta, votes, self.eta, still, reduce, self._known), fitted)

    def _as_fitted(self, found: Estimate) -> EMSettings:
        """The settings with fitted values replacing configured ones."""
        return replace(self.settings, prior=found.prior, link_tau=found.temperature.value)

    def settle(self) -> None:
        """Refits, unless the last step did. The collectives of :func:`estimate`."""
        if not self.warming_up and self._refitted_at != self.step:
            self.refit()

    def refit(self) -> Estimate:
        """Fits all reliabilities to the margins so far, and takes them over if the margins carry information; the same
        bits on every rank. The collectives of :func:`estimate` and :func:`of_first_rank`.
        """
        found = estimate(*self._seen(), self.eta, self._fitting, self.collectives, self._known, self._near)
        found = of_first_rank(found, self.collectives.from_first)
        self._near = found.population
        if found.sweep is not None:
            self.replace(found.eta)
            self.label_counts, self.right_sums = found.sweep.counts, found.sweep.right_sums
        self.estimate, self._refitted_at = found, self.step
        weight = found.temperature.weight
        if self.label_model is not None:
            self.refit_label_model(self._policy_says(self.buffer.margins, found))
            weight /= self._tempering
        self.voice.set_weight(weight, self._first_size())
        return found

    def _first_size(self) -> Tensor | None:
        """Mean |Δ| of all margins so far, float64 [], the same bits on every rank; None where those that are kept are
        not from before training. Two collectives, of 16 and 8 bytes.
        """
        if self.settings.buffer.margins != "prequential":
            return None
        margins = self.buffer.margins.double()
        sums = torch.stack((margins.nan_to_num(0.0).abs().sum(), (~margins.isnan()).double().sum()))
        self.collectives.all_reduce(sums)
        size = sums[0] / sums[1].clamp(min=1)
        self.collectives.from_first(size)
        return size

    @torch.no_grad()
    def refit_label_model(self, log_odds: Tensor) -> None:
        """Fits the label model to the policy's ``log_odds`` float64 [block] of this rank's pairs (nan: not seen); where
        it is in force, takes over its evidence, and its η where that rests on coefficients of its own.

        The collectives of :meth:`RunLabelModel.refit`, :meth:`~RunLabelModel.evidence`,
        :meth:`~RunLabelModel.reliabilities` and :meth:`~RunLabelModel.coefficients`.
        """
        self.label_model.refit(log_odds)
        self.pair_evidence, self.coefficients = None, {}
        if self.label_model.active:
            self.pair_evidence = self.label_model.evidence()
            eta, self.label_counts, self.right_sums = self.label_model.reliabilities(log_odds)
            self.replace(eta)
            self.coefficients = self.label_model.coefficients(log_odds)

    def _eta_errors(self) -> Tensor:
        """Standard errors of η [K] under the label model: those of the skills, carried over to η."""
        return self.coefficients[SKILL][1] * self.eta * (1 - self.eta)

    def sweep_label_model(self, log_odds: Tensor) -> Tensor | None:
        """:meth:`refit_label_model` to the policy's ``log_odds`` float64 [num_pairs] of all pairs, as a sweep has them.
        Returns the standard errors of η, float64 [K], or None where η is not the label model's.
        """
        self.refit_label_model(log_odds[self.buffer.block])
        return self._eta_errors() if self.coefficients else None

    def look_back(self) -> LookBack | None:
        """What gold labels say of the estimates, and who changed with time; None without a label model, or where kept
        margins may know what was said of their pairs. The collective of :meth:`RunLabelModel.look_back`.
        """
        if self.label_model is None or self.settings.buffer.margins != "prequential":
            return None
        weight = self.voice.weight * self._tempering  # as the last fit found it
        return self.label_model.look_back(self.buffer.margins.double() * weight)

    @property
    def _tempering(self) -> float:
        """By what the label model's temperature divides the policy's weight: once as a witness beside the votes, once
        as all evidence is.
        """
        return self.label_model.temperature**2

    def _policy_says(self, margins: Tensor, found: Estimate) -> Tensor:
        """The margins as log-odds float64, nan where there is none; 0 where they carry too little information."""
        log_odds = margins.double() * found.temperature.weight
        return log_odds if found.sweep is not None else torch.where(log_odds.isnan(), log_odds, 0.0)

    def _seen(self) -> tuple[Tensor, Votes]:
        """Margins and votes of this rank's pairs that have a margin."""
        seen = (~self.buffer.margins.isnan()).nonzero().squeeze(-1)
        return self.buffer.margins[seen], self.votes.of(seen, self.eta.device)

    def seen_share(self) -> float:
        """Share of the data's pairs that have a margin. One all-reduce of 8 bytes; waits for the device."""
        seen = (~self.buffer.margins.isnan()).sum().double()
        self.collectives.all_reduce(seen)
        return seen.item() / self.buffer.num_pairs

    def findings(self) -> tuple[Tensor, Evidence] | None:
        """Standard errors [K] of the last refit and the evidence it stood on; None if nothing has been fitted yet.

        The collectives of :func:`standard_errors` and :func:`evidence_of`.
        """
        if self.estimate is None or (self.estimate.sweep is None and not self.coefficients):
            return None
        fitted = self._as_fitted(self.estimate)
        seen, reduce = self._seen(), self.collectives.all_reduce
        evidence = evidence_of(*seen, fitted, reduce)
        if self.coefficients:
            return self._eta_errors(), evidence
        scale_fitted = self.estimate.temperature.fitted
        stretch = 1.0 if self.pair_evidence is None else self.label_model.now.stretch
        errors = standard_errors(*seen, self.eta, fitted, reduce, scale_fitted, self._known)
        return stretch * skewed(errors, self.eta), evidence

    def shared_state(self) -> dict[str, Tensor]:
        """As :meth:`AnnotatorReliability.shared_state`, the ``voice`` [7], the ``population`` [3] near which the next
        refit begins, and under ``label_model.<name>`` what that needs to go on.
        """
        if self._rows:
            raise RuntimeError("the EM state was asked for inside a step: commit or roll back first")
        state = super().shared_state() | {_VOICE: self.voice.state()}
        if self._near is not None:
            state[_POPULATION] = torch.tensor((*self._near.prior, self._near.tau), dtype=torch.float64)
        if self.label_model is not None:
            state |= {f"{_LABEL_MODEL}{name}": of for name, of in self.label_model.state().items()}
        return state if self.pair_evidence is None else {**state, _EVIDENCE: self.pair_evidence.clone()}

    def blocks(self) -> dict[str, MarginBuffer]:
        return {"margins": self.buffer}

    def load_shared_state(self, state: dict[str, Tensor]) -> None:
        """Restores :meth:`shared_state`; one without a label model (of an earlier version) starts with a fresh one."""
        super().load_shared_state(state)
        self._rows = []
        if _VOICE in state:
            self.voice.load(state[_VOICE])
        self._near = None
        if _POPULATION in state:
            a, b, tau = state[_POPULATION].tolist()
            self._near = Population((a, b), tau)
        if self.label_model is not None:
            own = {name.removeprefix(_LABEL_MODEL): of for name, of in state.items() if name.startswith(_LABEL_MODEL)}
            evidence = own.pop("evidence", None)
            self.label_model.load(own)
            self.pair_evidence = None if evidence is None else evidence.to(self.eta.device, copy=True)

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`AnnotatorReliability.state_dict`, with the ``margins`` [num_pairs] of all ranks' blocks.

        Collective: a gather of 4 bytes a pair over the ranks that hold different pairs.
        """
        margins = self.collectives.gather_rows(self.buffer.margins.unsqueeze(-1)).squeeze(-1)
        return {**super().state_dict(), "margins": margins.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`, on any number of ranks."""
        super().load_state_dict(state)
        self.buffer.load(state["margins"])
