"""The figures of a step and of a validation, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_rpo.em import PairStep, Votes
from nemo_rpo.losses import PairLogprobs, build_loss
from nemo_rpo.megatron.step.metrics import StepMetrics

BETA = 0.1


class Doubter:
    """An estimator that believes the opposite of every label."""

    def posterior(self, delta: torch.Tensor, votes: Votes, pair: torch.Tensor | None = None) -> torch.Tensor:
        return torch.full_like(delta, 0.1)


def figures(h: list[float], signs: list[list[float]], gold: list[int] | None, doubt: bool) -> dict[str, float]:
    """Of pairs whose log-ratios differ by ``h``: as held out with ``gold``, else as trained on."""
    zero = torch.zeros(len(h))
    x = PairLogprobs(torch.tensor(h), zero, zero, zero, zero + 3, zero + 3)
    loss = build_loss("dpo", beta=BETA)
    votes = Votes(torch.zeros(len(h), len(signs[0]), dtype=torch.long), torch.tensor(signs))
    step = PairStep(loss, "induced", 1.0, 0.0, False)
    found = StepMetrics(loss.reduction, torch.device("cpu"))
    losses = step(x, votes, torch.ones(len(h), dtype=torch.bool), Doubter() if doubt else None)
    found.add(x, losses, votes, None if gold is None else torch.tensor(gold))
    return found.means(held_out=gold is not None)


def nll(delta: float) -> float:
    return math.log1p(math.exp(-delta))


@pytest.mark.parametrize("doubt", [False, True])
def test_held_out_figures_take_labels_at_their_word(doubt: bool) -> None:
    """Two labels of three that say chosen, one that says rejected, and none believed by the estimator."""
    found = figures([2.0, -3.0], [[1, 1, -1], [-1, -1, -1]], [0, 0], doubt)
    assert found["loss"] == pytest.approx(((2 * nll(0.2) + nll(-0.2)) / 3 + nll(0.3)) / 2)
    assert found["acc"] == 1.0 and found["margin"] == pytest.approx(0.25)  # βh towards what most labels say
    assert found["em/posterior_mean"] == pytest.approx(0.1 if doubt else 1 / 3)


def test_gold_labels_decide_who_is_right_and_not_what_the_labels_lose() -> None:
    found = figures([2.0, -3.0], [[1.0], [1.0]], [-1, 0], doubt=False)
    assert found["acc"] == 0.0 and found["margin"] == pytest.approx((-0.2 - 0.3) / 2)
    assert found["loss"] == pytest.approx((nll(0.2) + nll(-0.3)) / 2)


def test_the_first_step_is_half_right() -> None:
    """All margins are 0 before the first step: neither right nor wrong. As many votes for either side take none."""
    assert figures([0.0, 0.0], [[1.0], [1.0]], None, doubt=False)["acc"] == 0.5
    assert figures([2.0], [[1.0, -1.0]], None, doubt=False)["acc"] == 0.5


def test_the_margin_is_that_of_the_link() -> None:
    found = figures([2.0, 4.0], [[1.0], [1.0]], None, doubt=True)
    assert found["margin"] == pytest.approx(0.3) == found["em/abs_delta_mean"]
    assert found["rewards_chosen_mean"] - found["rewards_rejected_mean"] == pytest.approx(3.0)
    assert found["loss"] == pytest.approx(sum(0.1 * nll(d) + 0.9 * nll(-d) for d in (0.2, 0.4)) / 2)
