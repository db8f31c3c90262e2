"""What labels alone say, without a policy: the estimates that the EM with a policy has to beat."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.e_step import posterior
from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.fit.sweep import full_batch_em
from nemo_rpo.em.votes import Votes
from nemo_rpo.errors import missing_extra

if TYPE_CHECKING:
    import pandas as pd


class LabelModel(NamedTuple):
    """Answers and annotators according to the labels alone.

    Attributes:
        w: probability that chosen is better [P].
        eta: reliability of every annotator [K]; their agreement with the answers for :func:`majority`.
        share_chosen: prior probability that chosen is better.
    """

    w: Tensor
    eta: Tensor
    share_chosen: float = 0.5


def majority(votes: Votes, num_annotators: int) -> LabelModel:
    """The share of labels for chosen; ½ where they split evenly or nobody labelled."""
    w = votes.share().double()
    agreed = torch.where(votes.sign > 0, w.unsqueeze(-1), 1 - w.unsqueeze(-1)) * votes.sign.abs()
    sums = torch.zeros(2, num_annotators, dtype=torch.float64, device=w.device)
    sums.index_add_(1, votes.annotator.flatten(), torch.stack((agreed.flatten(), votes.sign.abs().double().flatten())))
    return LabelModel(w, torch.where(sums[1] > 0, sums[0] / sums[1].clamp(min=1), 0.5))


def one_coin(votes: Votes, num_annotators: int, settings: EMSettings, learn_share: bool = False) -> LabelModel:
    """One-coin Dawid-Skene: the EM of this package with every margin at the log-odds of the class prior.

    Args:
        votes: labels [P, V].
        settings: prior, clamp, start of the reliabilities.
        learn_share: estimate P(chosen is better) too. For recorded preferences, where which answer is called chosen
            means nothing, leave it at ½; for labels of two classes (0 and 1) it is the class prior.
    """
    settings = replace(settings, link_tau=1.0)
    device = votes.sign.device
    eta, share = torch.full((num_annotators,), settings.eta_init, dtype=torch.float64, device=device), 0.5
    for _ in range(settings.sweep_max_iterations):
        margin = torch.full((len(votes.sign),), share, dtype=torch.float64, device=device).logit()
        eta = full_batch_em(margin, votes, eta, settings).eta
        w = posterior(margin, votes, eta.logit())
        mean = w.mean().clamp(1e-6, 1 - 1e-6).item()
        if not learn_share or abs(mean - share) < settings.sweep_tolerance:
            break
        share = mean
    return LabelModel(w, eta, share)


def dawid_skene(votes: Votes, num_annotators: int) -> LabelModel:
    """Dawid-Skene with a confusion matrix per annotator, by crowd-kit (an optional dependency).

    ``eta`` is the mean of the two diagonal entries of the matrix: the reliability on balanced answers.

    Raises:
        MissingExtraError: crowd-kit is not installed.
    """
    frame = crowd_kit_frame(votes)
    from crowdkit.aggregation import DawidSkene

    model = DawidSkene(n_iter=100).fit(frame)
    w = torch.full((len(votes.sign),), 0.5, dtype=torch.float64)
    probabilities = model.probas_.reindex(columns=[False, True], fill_value=0.0)
    w[torch.tensor(probabilities.index.to_numpy())] = torch.tensor(probabilities[True].to_numpy())
    eta = torch.full((num_annotators,), 0.5, dtype=torch.float64)
    for worker, matrix in model.errors_.groupby(level="worker"):
        table = (
            matrix.droplevel("worker").reindex(index=[False, True], columns=[False, True], fill_value=0.0).to_numpy()
        )
        eta[int(worker)] = float(table.diagonal().mean())
    return LabelModel(w, eta, model.priors_.get(True, 0.0))


def crowd_kit_frame(votes: Votes) -> pd.DataFrame:
    """The signed votes as crowd-kit reads them: one row a vote, ``task`` (the pair), ``worker``, ``label`` (says
    chosen).

    Raises:
        MissingExtraError: crowd-kit is not installed.
    """
    try:
        import crowdkit  # noqa: F401
        import pandas as pd
    except ImportError as error:
        raise missing_extra("crowd-kit", "crowd") from error
    pair, column = (votes.sign != 0).nonzero().cpu().unbind(-1)
    worker, says_chosen = votes.annotator.cpu()[pair, column], votes.sign.cpu()[pair, column] > 0
    return pd.DataFrame({"task": pair.numpy(), "worker": worker.numpy(), "label": says_chosen.numpy()})
