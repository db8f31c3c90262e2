"""The settings of the label model, and the only place for their defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LabelModelSettings:
    """How the label model is fitted, chosen and judged.

    Attributes:
        skill_mean, skill_mean_spread: what is expected of a crowd's mean logit skill before any vote is seen, N(mean,
            spread²). Human preference labels agree with a consensus about three times in four (logit 1.1); a crowd that
            is wrong on average lies beyond two of these spreads, which tells a crowd from its mirror image.
        mean_spread: the same for the mean of every other coefficient, around 0.
        skill_spread, feature_spread: expected standard deviation over annotators of the skill and of every other
            coefficient. They count as much as ``spread_votes`` annotators.
        share_spread: expected standard deviation of the log-odds by which the truth goes with a pair's leaning (its
            length), for one standard deviation of that.
        spread_votes: weight of these expectations, in annotators.
        max_iterations, tolerance: the EM ends after this many iterations, or once the root mean square of its moves is
            below the tolerance.
        min_log_bayes_factor: by how much (in nats) the marginal likelihood has to rise for a further feature.
        search_votes: votes that features are searched on at most; of a larger crowd, a part of the pairs is taken.
        max_topics: topics with a feature of their own at most, the most frequent ones.
        order_tolerance: the order shown counts as random where the share of pairs whose chosen was shown first is
            within this of one half, or within three binomial standard errors.
        bootstrap: simulated crowds that give the dependence statistic its distribution under independence; 0 asks
            for no dependence.
        bootstrap_votes: votes that a simulated crowd has at most; of a larger crowd a part of the pairs is taken.
        dependence_errors: standard deviations of the simulated crowds beyond which a statistic is warned of.
        min_spread: spread of z, relative to the simulated crowds', below which nothing is warned of however certain.
        min_correlation: the same for the mean correlation of errors.
        outweighing_ratio, outweighing_spread, outweighing_correlation: where all are exceeded (the spread of z relative
            to the simulated crowds', the spread, the correlation), votes cannot tell shared errors from truth, and the
            majority is reported instead of the model. Chosen by ``benchmarks/label_model_thresholds.py``.
        wide_spread: spread of z, relative to the simulated crowds', beyond which intervals of reliabilities no longer
            take the majority for better than a coin.
        match_tolerance: how near, relative to it, the correlation of errors of a simulated crowd has to come to the
            observed one for the two to count as equally dependent.
        min_anchors: fewer anchors judge nothing, and free no mean of a leaning.
        folds: parts of the anchors; each is held out once to judge a fit to the others.
        drift_level: probability with which a crowd that does not drift is said to; of annotators named, those wrongly.
        drift_labels: labels with a known time from which an annotator is tested for drift.
        max_below_half: share of labels from annotators surely below ½ from which they are named, and posteriors are
            mixed with their mirror image.
        upside_down_share: expected share of labels from annotators below ½ from which the rest of the crowd is
            doubted as much.
        below_half_spread, upside_down_spread: standard deviation of crowds' mean skill in either case: how much
            posteriors are mixed.
    """

    skill_mean: float = 1.1
    skill_mean_spread: float = 0.5
    mean_spread: float = 0.5
    skill_spread: float = 0.7
    feature_spread: float = 0.3
    share_spread: float = 0.5
    spread_votes: float = 1.0
    max_iterations: int = 300
    tolerance: float = 5e-4
    min_log_bayes_factor: float = 3.0
    search_votes: int = 400_000
    max_topics: int = 5
    order_tolerance: float = 0.05
    bootstrap: int = 24
    bootstrap_votes: int = 40_000
    dependence_errors: float = 2.7
    min_spread: float = 1.1
    min_correlation: float = 0.005
    outweighing_ratio: float = 1.45
    outweighing_spread: float = 1.15
    outweighing_correlation: float = 0.01
    wide_spread: float = 1.25
    match_tolerance: float = 0.3
    min_anchors: int = 10
    folds: int = 5
    drift_level: float = 0.05
    drift_labels: int = 20
    max_below_half: float = 0.15
    upside_down_share: float = 0.25
    below_half_spread: float = 0.7
    upside_down_spread: float = 1.0
