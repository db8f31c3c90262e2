"""Where the weights of annotators on groups begin, and whether there is anything to tell the groups by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.label_model import FlatVotes
from nemo_rpo.em.taste import fit_tastes
from nemo_rpo.errors import ConfigError

# Wide enough that the heads part early, narrow enough that an annotator who began on the wrong side comes over.
_SPREAD = 1.5
_LEAST = 0.02  # weight at the start: whoever the votes misplace comes over later
_TWO = 2  # labels: with one comparison an annotator, every division into groups fits as well as any other


def check_identifiable(labels: Tensor, groups: int) -> None:
    """Refuses groups where the data cannot tell them: one comparison an annotator identifies no types (2510.15716).

    Args:
        labels: signed labels of each annotator [K].

    Raises:
        ConfigError: fewer than half of the labels come from annotators with two or more, or there are fewer such
            annotators than two a group.
    """
    several = labels >= _TWO
    share = labels[several].sum().item() / max(labels.sum().item(), 1)
    if share < 0.5:
        raise ConfigError(
            f"model.rpo.loss_options.groups={groups} cannot be told apart: {1 - share:.0%} of the labels come from "
            "annotators who gave a single one, which says nothing of whose taste they share. Set groups to 1, or "
            "model.data.annotator_key to the field that names annotators"
        )
    if several.sum() < 2 * groups:
        raise ConfigError(
            f"model.rpo.loss_options.groups={groups} cannot be told apart: only {int(several.sum())} annotators gave "
            f"two labels or more, and {groups} groups need {2 * groups}. Set groups to 1, or model.data.annotator_key "
            "to the field that names annotators"
        )


class Start(NamedTuple):
    """Log-odds float64 [K, G] of each annotator's group, and a sentence on where they come from."""

    log_odds: Tensor
    said: str


def start_of(votes: FlatVotes, annotators: int, groups: int, seed: int) -> Start:
    """Where votes on shared pairs tell ``groups`` tastes apart, the weights begin there; else at random, whoever agrees
    with the others least being likelier to begin outside the first group. On the CPU.
    """
    found = fit_tastes(votes, annotators, max_groups=groups, seed=seed)
    if found.groups == groups:
        shares = ", ".join(f"{share:.0%}" for share in found.share.tolist())
        said = f"begin where the votes put the annotators ({shares})"
        return Start(found.membership.clamp(min=_LEAST).log(), said)
    start = random_start(annotators, groups, seed)
    if found.refused:
        return Start(start, f"begin at random: {found.refused}")
    # One truth for all leaves those who share another taste with the lowest reliabilities.
    logit = found.eta.clamp(0.02, 0.98).logit()
    start[:, 0] += 2 * _SPREAD * (logit - logit.mean()) / logit.std().clamp(min=1e-9)
    told = f"{found.groups} group{'s' * (found.groups > 1)}"
    return Start(start, f"begin near how far each annotator agrees with the others: the votes alone tell {told} apart")


def random_start(annotators: int, groups: int, seed: int) -> Tensor:
    """Log-odds float64 [K, G] that favour a random group a little: equal weights would give all heads one gradient for
    ever. The same on every rank and under every layout.
    """
    generator = torch.Generator().manual_seed(seed)
    return _SPREAD * torch.randn(annotators, groups, generator=generator, dtype=torch.float64)
