r"""From what a file says of its votes to features of the label model. Shapes: M votes, P pairs, K annotators.

Every feature has a standard deviation of about 1 over the votes on which it is known, and is 0 where it is not known.
A skill feature of 0 means "like this annotator's other votes", a leaning of 0 "nothing here to lean to".

===================  =========  =======================================================================================
feature              kind       value
===================  =========  =======================================================================================
slot                 leaning    +1 chosen was shown first, -1 rejected was
length               leaning    log(length of chosen / length of rejected), over its root mean square
strength             skill      as stated, less the annotator's own mean
confidence           skill      the same
seconds              skill      log of the time spent, less the annotator's own mean
sequence             skill      place of the vote in its annotator's own order of time: a slope is drift
sequence:middle      skill      higher in the middle of that order than at its ends: a drift that is no line
topic:<name>         skill      1 on the pairs of a topic, less its share; the most frequent topics, never all
===================  =========  =======================================================================================

The annotator's own mean is drawn to the crowd's by five votes, so that one vote is not its own standard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import SLOT, FlatVotes, VoteFeatures
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.errors import DataError

LENGTH, STRENGTH, CONFIDENCE, SECONDS, SEQUENCE = "length", "strength", "confidence", "seconds", "sequence"
SEQUENCE_MIDDLE, TOPIC = "sequence:middle", "topic:"
# Votes of the crowd's mean that an annotator's own mean is mixed with.
_SHRINK = 5.0
# Standardised values are held within this, so that one forgotten timer decides nothing.
_FURTHEST = 4.0


class VoteColumns(NamedTuple):
    """What a file says of votes and pairs; None where it says nothing.

    Attributes:
        shown_first: [M], +1 chosen was shown first, -1 rejected was, 0 not known.
        strength, confidence, seconds, time: [M], nan where not known; ``time`` in seconds from any origin.
        lengths: [P, 2], lengths of chosen and rejected in any unit; 0 where not known.
        topic: int64 [P], an index into ``topic_names``; -1 not known.
        topic_names: of the topics; their indices where empty.
    """

    shown_first: Tensor | None = None
    strength: Tensor | None = None
    confidence: Tensor | None = None
    seconds: Tensor | None = None
    time: Tensor | None = None
    lengths: Tensor | None = None
    topic: Tensor | None = None
    topic_names: Sequence[str] = ()


def vote_features(votes: FlatVotes, columns: VoteColumns, settings: LabelModelSettings | None = None) -> VoteFeatures:
    """Features of flat votes, each a float32 [M]; columns that do not vary are left out (a slot: that is never known).

    Args:
        votes: who voted on what.
        columns: beside them.
        settings: ``max_topics``.

    Raises:
        DataError: a column whose shape is not that of the votes or pairs.

    >>> votes = FlatVotes(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.ones(2), 2)
    >>> columns = VoteColumns(lengths=torch.tensor([[20.0, 10.0], [10.0, 20.0]]), strength=torch.tensor([2.0, 2.0]))
    >>> vote_features(votes, columns)
    VoteFeatures(skill={}, leaning={'length': tensor([ 1., -1.])})
    """
    settings = settings or LabelModelSettings()
    _check(votes, columns)
    leaning = {SLOT: columns.shown_first, LENGTH: _length(votes, columns.lengths)}
    seconds = None if columns.seconds is None else columns.seconds.double().clamp(min=0.1).log()
    skill = {
        STRENGTH: _beside_own_mean(votes, columns.strength),
        CONFIDENCE: _beside_own_mean(votes, columns.confidence),
        SECONDS: _beside_own_mean(votes, seconds),
        **_drift(votes, columns.time),
        **_topics(votes, columns, settings.max_topics),
    }
    return VoteFeatures(_that_vary(skill), _that_vary(leaning))


def sequence(annotator: Tensor, time: Tensor) -> Tensor:
    r"""Place of each vote among its annotator's votes in order of time, float64 [M].

    √12 ((rank - ½)/n - ½) with ranks 1 … n over the votes whose time is known, equal times sharing their mean rank:
    from -√3 at an annotator's first vote to √3 at the last. 0 where the time is not known.

    >>> sequence(torch.tensor([0, 0, 0, 1]), torch.tensor([30.0, 10.0, 20.0, 5.0])).round(decimals=2)
    tensor([ 1.1500, -1.1500,  0.0000,  0.0000], dtype=torch.float64)
    """
    known = time.isfinite().nonzero().squeeze(-1)
    places = torch.zeros(len(annotator), dtype=torch.float64, device=time.device)
    if not len(known):
        return places
    by_time = known[time[known].argsort(stable=True)]
    order = by_time[annotator[by_time].argsort(stable=True)]
    owner, at = annotator[order], time[order]
    changes = torch.ones_like(owner, dtype=torch.bool)
    changes[1:] = (owner[1:] != owner[:-1]) | (at[1:] != at[:-1])
    moment = changes.cumsum(0) - 1
    count = torch.bincount(owner)
    start = count.cumsum(0) - count
    rank = torch.arange(1, len(order) + 1, dtype=torch.float64, device=time.device) - start[owner]
    mean_rank = torch.zeros(int(moment[-1]) + 1, dtype=torch.float64, device=time.device).index_add_(0, moment, rank)
    mean_rank /= torch.bincount(moment)
    places[order] = math.sqrt(12) * ((mean_rank[moment] - 0.5) / count[owner] - 0.5)
    return places


def middle_of_sequence(place: Tensor) -> Tensor:
    """(1 - t²)/√.8 of places t in [-√3, √3]: standardised, and without correlation to t."""
    return (1 - place.square()) / math.sqrt(0.8)


def _drift(votes: FlatVotes, time: Tensor | None) -> dict[str, Tensor]:
    if time is None:
        return {}
    places = sequence(votes.annotator, time)
    known = time.isfinite()
    middle = torch.where(known, middle_of_sequence(places), 0.0)
    sums = torch.zeros(2, int(votes.annotator.max()) + 1, dtype=torch.float64, device=time.device)
    mean, count = sums.index_add_(1, votes.annotator, torch.stack((middle, known.double())))
    mean = mean / count.clamp(min=1)
    return {SEQUENCE: places, SEQUENCE_MIDDLE: torch.where(known, middle - mean[votes.annotator], 0.0)}


def _check(votes: FlatVotes, columns: VoteColumns) -> None:
    of_votes, of_pairs = (len(votes.pair),), (votes.num_pairs,)
    shapes = {"lengths": (votes.num_pairs, 2), "topic": of_pairs}
    for name, values in columns._asdict().items():
        if isinstance(values, Tensor) and values.shape != (expected := shapes.get(name, of_votes)):
            raise DataError(f"the column '{name}' has shape {list(values.shape)}; expected {list(expected)}")


def _length(votes: FlatVotes, lengths: Tensor | None) -> Tensor | None:
    if lengths is None:
        return None
    known = (lengths > 0).all(-1)
    log_ratio = torch.where(known, (lengths[:, 0].double() / lengths[:, 1].double()).log(), 0.0)[votes.pair]
    scale = log_ratio[known[votes.pair]].square().mean().sqrt()
    return (log_ratio / scale.clamp(min=1e-9)).clamp(-_FURTHEST, _FURTHEST)


def _beside_own_mean(votes: FlatVotes, values: Tensor | None) -> Tensor | None:
    """Values less their annotator's mean, over the standard deviation of that; 0 where not known."""
    if values is None:
        return None
    known = values.isfinite()
    values = torch.where(known, values.double(), 0.0)
    size = int(votes.annotator.max()) + 1 if len(votes.annotator) else 0
    sums = torch.zeros(2, size, dtype=torch.float64, device=values.device)
    sums.index_add_(1, votes.annotator, torch.stack((values, known.double())))
    crowd = values.sum() / known.sum().clamp(min=1)
    own = (sums[0] + _SHRINK * crowd) / (sums[1] + _SHRINK)
    beside = torch.where(known, values - own[votes.annotator], 0.0)
    beside = torch.where(known, beside - beside.sum() / known.sum().clamp(min=1), 0.0)
    scale = (beside.square().sum() / known.sum().clamp(min=1)).sqrt()
    return (beside / scale.clamp(min=1e-9)).clamp(-_FURTHEST, _FURTHEST)


def _topics(votes: FlatVotes, columns: VoteColumns, most: int) -> dict[str, Tensor]:
    if columns.topic is None or not (columns.topic >= 0).any():
        return {}
    of_vote = columns.topic[votes.pair]
    known = of_vote >= 0
    count = torch.bincount(of_vote[known])
    kinds = int((count > 0).sum())
    found = {}
    for topic in count.argsort(descending=True, stable=True)[: min(most, kinds - 1)].tolist():
        share = count[topic].double() / known.sum()
        column = ((of_vote == topic).double() - share) / (share * (1 - share)).sqrt()
        name = columns.topic_names[topic] if columns.topic_names else str(topic)
        found[f"{TOPIC}{name}"] = torch.where(known, column, 0.0)
    return found


def _that_vary(columns: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Those with more than one value; of a slot those with any: an order that never changed is a finding of its own."""
    kept = {}
    for name, values in columns.items():
        if values is None or not len(values):
            continue
        if (values.max() - values.min() > 1e-6) or (name == SLOT and (values != 0).any()):
            kept[name] = values.float()
    return kept
