"""The label model of a run: chosen on a sample, fitted to all pairs at every refit, and what it says of each pair.

Shapes: N pairs of the data, P pairs of this rank's block, M votes, K annotators, d coefficients each, F families.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nemo_rpo.em.collectives import Collectives
from nemo_rpo.em.em_settings import LabelModelInTraining
from nemo_rpo.em.guards import Warned
from nemo_rpo.em.label_model.choose import columns_of_pairs
from nemo_rpo.em.label_model.coded_votes import FlatVotes, VoteFeatures, VoteTable, vote_table
from nemo_rpo.em.label_model.coefficients import (
    Population,
    annotator_sums,
    coefficient_variances,
    logits,
    pair_sums,
    posterior,
    with_population_unknown,
)
from nemo_rpo.em.label_model.features import LENGTH, vote_features
from nemo_rpo.em.label_model.label_model_fit import ANCHORS, MAJORITY, LabelModelFit, fit_label_model
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.member import KNOWN, PairPrior, iterate, told
from nemo_rpo.em.label_model.of_run.look_back import LookBack, drift_of, judge_estimates
from nemo_rpo.em.label_model.of_run.model_in_force import ModelInForce, from_numbers, of_first_rank
from nemo_rpo.em.label_model.of_run.training_crowd import Crowd, draw_sample
from nemo_rpo.em.label_model.shared_errors.exchangeable import GRID_POINTS, exchangeable_votes, posterior_given
from nemo_rpo.em.label_model.shared_errors.families import family_weights

# Features are chosen anew once this many times as many pairs have margins, four or five times in an epoch: a search
# costs as much as several refits.
_CHOSEN_ANEW = 4
# Root mean square of the coefficients' last move at which a refit ends: a fiftieth of their standard errors. The next
# one goes on from there.
_STILL = 1e-2
# Warnings of what is measured once; and those of votes alone, where a run's own guards ask beside the margins.
FROM_DEPENDENCE = ("dependent_errors", "shared_errors")
_OF_VOTES_ALONE = ("upside_down", "annotators_below_half", "nobody_heard")
# With fewer votes a pair, nothing tells an annotator's leaning to length from a truth that goes with length.
_VOTES_FOR_LENGTH = 1.5


class RunLabelModel:
    """The label model beside the margin buffer: every refit gives it the margins of this rank's pairs.

    Which features are in is chosen by :func:`fit_label_model` on a sample of the pairs, the same on every rank, at the
    first refit and again whenever four times as many pairs have margins. Every refit then runs the EM over all pairs of
    all ranks, from the coefficients of the last one. Pairs without a margin take part with a margin of 0: their votes
    are evidence of their annotators too.

    Attributes:
        now: the model in force; None before the first refit.
        reasons, warnings: of the last choice made in this process; what was found of dependence stays.
        families: groups found whose errors hang together, as annotator indices.
    """

    def __init__(
        self,
        crowd: Crowd,
        num_annotators: int,
        block: slice,
        settings: LabelModelInTraining,
        collectives: Collectives,
        bounds: tuple[float, float],
        device: torch.device | str,
        answers: Tensor | None = None,
    ) -> None:
        """``block``: this rank's pairs. ``bounds``: of η, within which skills are kept. ``answers``: known ones, right
        and wrong [2, K] of each annotator that count beside his votes, at features of 0; None: none. No collective.
        """
        self.settings, self.collectives, self.device = settings, collectives, torch.device(device)
        self.num_annotators = num_annotators
        known = settings.gold and crowd.gold is not None
        gold = crowd.gold if known else torch.zeros(crowd.votes.num_pairs)
        self._anchored = bool((gold != 0).any())
        lower, upper = bounds
        if num_annotators == 1 and not self._anchored:  # one alone is not told from his opposite
            lower = max(lower, 0.5)
        self._bounds = torch.logit(torch.tensor((lower, upper), dtype=torch.float64)).tolist()
        declared = settings.families and crowd.family is not None and bool((crowd.family >= 0).any())
        self.family = crowd.family.to(self.device) if declared else None
        whole = vote_table(crowd.votes, num_annotators, self._features(crowd))
        self._names = whole.names
        self._several = bool((whole.pair[1:] == whole.pair[:-1]).any())
        self._sample = draw_sample(whole, gold, crowd.chosen_first, settings.sample_votes)
        judges = crowd.gold if crowd.gold is not None else torch.zeros(crowd.votes.num_pairs)
        self._judges = judges[self._sample.pairs].double() * self._sample.turn
        own = whole.where((whole.pair >= block.start) & (whole.pair < block.stop))
        own = own._replace(pair=own.pair - block.start, num_pairs=block.stop - block.start)
        columns = {name: getattr(own, name).to(self.device) for name in VoteTable._fields[:6]}
        self._table = own._replace(**columns, all_reduce=collectives.all_reduce, known=answers)
        self._gold = gold[block].double().to(self.device)
        self._columns = {name: column.to(self.device) for name, column in columns_of_pairs(own).items()}
        self.now: ModelInForce | None = None
        self.reasons: list[str] = []
        self.warnings: list[Warned] = []
        self.families: list[list[int]] = []
        self._chosen_at = 0  # pairs that had a margin when it was chosen

    def _features(self, crowd: Crowd) -> VoteFeatures:
        wanted = self.settings.features
        if wanted == "none":
            return VoteFeatures()
        found = vote_features(crowd.votes, crowd.columns)
        votes_a_pair = (crowd.votes.sign != 0).sum().item() / max(1, crowd.votes.num_pairs)

        def taken(name: str) -> bool:
            if wanted != "auto":
                return name in wanted or name.partition(":")[0] in wanted
            return name != LENGTH or self._anchored or votes_a_pair >= _VOTES_FOR_LENGTH

        skill, leaning = ({n: x for n, x in of.items() if taken(n)} for of in (found.skill, found.leaning))
        return VoteFeatures(skill, leaning)

    @property
    def useful(self) -> bool:
        """Whether these data can ever make it say more than reliabilities do."""
        more = len(self._names) > 1 or self._anchored or self.family is not None
        return more or (self.settings.dependence and self._several)

    @property
    def temperature(self) -> float:
        """What log-odds of a pair are divided by because errors hang together; 1 before the first choice."""
        return 1.0 if self.now is None else self.now.temperature

    @property
    def active(self) -> bool:
        """Whether it says more of a pair than Σ s logit η."""
        now = self.now
        if now is None:
            return False
        more = len(now.names) > 1 or bool(now.shares) or len(now.grid) > 0 or now.temperature != 1.0
        return more or self._anchored or self.family is not None

    def _heard(self, margin: Tensor) -> Tensor:
        """The policy's log-odds ``margin`` as its word for a pair beside the votes; 0 where it has said nothing. A
        policy learns from votes: where their errors hang together it has learnt what they share, and agrees with them
        more often than with the truth. So it is taken for less, by the votes' own temperature.
        """
        return margin.nan_to_num(0.0) / self.temperature

    def refit(self, margin: Tensor) -> None:
        """Fits the model to the ``margin`` float64 [P] of this rank's pairs, log-odds that chosen is better; nan where
        a pair was not seen.

        Collectives: one of 8 bytes; where a choice is due, one gather of 4 bytes a pair; those of
        :func:`nemo_rpo.em.label_model.member.iterate`; those of
        :func:`nemo_rpo.em.label_model.of_run.model_in_force.of_first_rank`, twice.
        """
        seen = self._table.total(~margin.isnan()).item()
        if self.now is None or seen >= _CHOSEN_ANEW * max(1, self._chosen_at):
            everywhere = self.collectives.gather_rows(margin.float().unsqueeze(-1)).squeeze(-1)
            self._choose(self._heard(everywhere[self._sample.pairs.to(everywhere.device)].double().cpu()))
            self._chosen_at = int(seen)
        if self.active:
            self._fit(self._heard(margin))

    def _choose(self, margin: Tensor) -> None:
        """``margin`` float64 [p] of the sample's pairs, for chosen."""
        sample = self._sample.table
        present, annotator = torch.unique(sample.annotator, return_inverse=True)
        skills, names = sample.num_skill, sample.names
        # Errors hang together or they do not, whatever the policy learns: it is measured once.
        measure = self.settings.dependence and self._several and self.now is None
        fit = fit_label_model(
            FlatVotes(sample.pair, annotator, sample.sign(), sample.num_pairs, _counted_of_pairs(sample)),
            len(present),
            VoteFeatures(
                {name: sample.design[:, j] for j, name in enumerate(names[:skills]) if j},
                {name: sample.design[:, j] for j, name in enumerate(names[skills:], start=skills)},
            ),
            self._sample.gold if self._anchored else None,
            None if self.family is None else self.family.cpu()[present],
            margin * self._sample.turn,
            replace(
                LabelModelSettings(),
                bootstrap=LabelModelSettings.bootstrap if measure else 0,
                bootstrap_votes=min(LabelModelSettings.bootstrap_votes, self.settings.sample_votes),
            ),
        )
        self.reasons = fit.reasons()
        if measure:
            self.families = [present[group].tolist() for group in fit.families]
        lasting = [warned for warned in self.warnings if warned.guard in FROM_DEPENDENCE]
        of_now = [warned for warned in fit.warnings if warned.guard not in _OF_VOTES_ALONE]
        # Families are named there by their places in the sample.
        self.warnings = lasting + [Warned(guard, text.partition("; families: ")[0]) for guard, text in of_now]
        self._take(self._from(fit, present))

    def look_back(self, margin: Tensor) -> LookBack:
        """What gold labels say of the estimates, and who changed with time, on the sample; for the end of a run.

        ``margin`` as in :meth:`refit`, from before the policy was trained on the pairs. One gather of 4 bytes a pair.
        """
        everywhere = self.collectives.gather_rows(margin.float().unsqueeze(-1)).squeeze(-1)
        sample, now = self._sample, self.now
        of_policy = self._heard(everywhere[sample.pairs.to(everywhere.device)].double().cpu()) * sample.turn
        shares = () if now is None else now.shares
        table = sample.table.select(() if now is None else now.names)
        judged = judge_estimates(table, of_policy, self._judges, self._anchored, shares)
        return LookBack(judged, *drift_of(sample.table, of_policy, sample.gold))

    def _from(self, fit: LabelModelFit, present: Tensor) -> ModelInForce:
        """What a fit to the sample, of the annotators ``present`` in it, comes to for all; on the device."""
        member, before = fit.member, self.now
        device = self.device
        population = Population(*(of.to(device) for of in member.population))
        theta = population.mean.expand(self.num_annotators, -1).clone()
        theta[present.to(device)] = member.theta.to(device)
        correlation = theta.new_zeros(0)
        if self.family is not None:  # families of which nobody is in the sample have 0
            correlation = theta.new_zeros(int(self.family.max()) + 1)
            correlation[: len(fit.family_correlation)] = fit.family_correlation.to(device)
        found = ModelInForce(
            member.names,
            theta,
            population,
            correlation,
            theta.new_zeros(0) if before is None else before.grid,
            member.prior.shares,
            fit.recommended == ANCHORS,
            1.0 if before is None else before.temperature,
            1.0 if before is None else before.stretch,
        )
        if fit.matched is not None:
            found = found._replace(temperature=fit.matched.temperature, stretch=fit.matched.stretch)
        if fit.recommended == MAJORITY:
            found = found._replace(grid=exchangeable_votes(self._sample.table).grid.to(device))
        return found

    def _fit(self, margin: Tensor) -> None:
        now = self.now
        table, prior = self._votes(), self._prior(margin)
        if now.from_anchors:
            table = table.where((self._gold != 0)[table.pair])
        found = iterate(table, prior, now.population, now.theta, None, LabelModelSettings(tolerance=_STILL))
        theta = found.theta.clone()
        theta[:, 0].clamp_(*self._bounds)
        self._take(now._replace(theta=theta, population=found.population, shares=found.prior.shares))

    def _take(self, found: ModelInForce) -> None:
        self.now = of_first_rank(found, self._names, self.collectives.from_first, GRID_POINTS)

    def _votes(self) -> VoteTable:
        """This rank's votes with the features in force, families discounted."""
        table = self._table.select(self.now.names)
        if self.family is None:
            return table
        return table._replace(weight=family_weights(table, self.family, self.now.correlation).to(self.device))

    def _prior(self, margin: Tensor) -> PairPrior:
        return PairPrior(margin, self._gold, self._columns, self.now.shares)

    def _own_evidence(self) -> Tensor:
        """E float64 [P] of this rank's pairs."""
        now = self.now
        if len(now.grid) and self._table.num_pairs:
            # Errors that all share leave no trace in the votes: what they agree on is as likely error as truth.
            of_votes = torch.logit(0.5 + 0.5 * (posterior_given(self._table, now.grid) - 0.5))
        else:
            sums = pair_sums(self._votes(), now.theta)
            of_votes = (sums.if_chosen - sums.if_rejected) / now.temperature
            of_votes = of_votes + self._prior(torch.zeros_like(of_votes)).believed
        return torch.where(self._gold != 0, self._gold * KNOWN, of_votes)

    def evidence(self) -> Tensor:
        """E float32 [N] of all pairs of the data: what votes, gold labels and the order shown say for chosen; the same
        bits on every rank.

        Collectives: one gather and one broadcast from the first rank, of 4 bytes a pair each.
        """
        everywhere = self.collectives.gather_rows(self._own_evidence().float().unsqueeze(-1)).squeeze(-1).contiguous()
        self.collectives.from_first(everywhere)
        return everywhere

    def reliabilities(self, margin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """η, labels, and posterior sum of right labels of every annotator, float64 [K] each; the same bits on every
        rank.

        η is P(label right), a mean over the annotator's own votes; σ of the skill where there are none. ``margin`` as
        in :meth:`refit`. Collectives: three of 8 K bytes and a broadcast of 24 K.
        """
        now, table = self.now, self._votes()
        log_odds = self._heard(margin) / now.temperature + self._own_evidence()
        w = torch.sigmoid(log_odds)[table.pair]
        said_right = torch.where(table.says_chosen, w, 1 - w)
        a, b = logits(table, now.theta)
        first = torch.sigmoid(self._prior(torch.zeros_like(log_odds)).of_columns)[table.pair]
        right = first * torch.sigmoid(a + b) + (1 - first) * torch.sigmoid(a - b)
        counted = table.counted.double()
        cast, sums = table.per_annotator(counted), table.per_annotator(counted * said_right)
        eta = table.per_annotator(counted * right) / cast.clamp(min=1e-9)
        if len(now.grid):  # of the majority's posteriors: a vote each way, so that few votes are not certain
            eta = (sums + 1) / (cast + 2)
        packed = torch.stack((torch.where(cast > 0, eta, torch.sigmoid(now.theta[:, 0])), cast, sums))
        self.collectives.from_first(packed)
        eta, cast, sums = packed
        return eta, cast, sums

    def standard_errors(self, margin: Tensor) -> Tensor:
        """Of every coefficient, float64 [K, d], annotators apart; ``margin`` as in :meth:`refit`.

        Collectives: those of :func:`~nemo_rpo.em.label_model.coefficients.annotator_sums`, and one of 8 K bytes.
        """
        now, table, prior = self.now, self._votes(), self._prior(self._heard(margin))
        w = posterior(prior.joint(pair_sums(table, now.theta)))
        sums = annotator_sums(table, now.theta, w, louis=True, told=told(table, prior))
        variances = coefficient_variances(sums, now.population)
        voted = table.per_annotator(table.counted) > 0
        weight = LabelModelSettings.spread_votes
        return now.stretch * with_population_unknown(variances, now.theta, voted, now.population, weight).sqrt()

    def coefficients(self, margin: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """By feature, the skill first: the coefficients and their standard errors, float64 [K] each. ``margin`` as in
        :meth:`refit`; the collectives of :meth:`standard_errors`."""
        errors = self.standard_errors(margin)
        return {name: (self.now.theta[:, j], errors[:, j]) for j, name in enumerate(self.now.names)}

    def state(self) -> dict[str, Tensor]:
        """By name, the same on every rank; nothing before the first choice. ``names`` is UTF-8, uint8."""
        if self.now is None:
            return {}
        names = torch.tensor(list("\n".join(self.now.names).encode()), dtype=torch.uint8)
        return {"names": names, "fitted": self.now.numbers(), "chosen_at": torch.tensor([self._chosen_at])}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restores :meth:`state`, to the bit; with nothing in it the next refit chooses anew."""
        self.now, self._chosen_at = None, 0
        if "fitted" in state:
            names = bytes(state["names"].tolist()).decode().split("\n")
            numbers = state["fitted"].to(self.device, copy=True)
            self.now, self._chosen_at = from_numbers(numbers, names, self.num_annotators), int(state["chosen_at"])


def _counted_of_pairs(table: VoteTable) -> Tensor:
    return torch.ones(table.num_pairs).index_put((table.pair,), table.counted)
