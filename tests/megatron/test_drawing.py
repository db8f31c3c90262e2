"""How the next token is drawn: from the right distribution, by a number that belongs to the row alone."""

from __future__ import annotations

import pytest
import torch

from nemo_rpo.megatron.generate.drawing import Drawing, draw, uniform


def numbers(count: int) -> torch.Tensor:
    return torch.tensor([uniform(3, i) for i in range(count)], dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7), (2.0, 0.55)])
def test_frequencies_are_the_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([1.0, -1.0, 2.0, 0.5, -3.0, 99.0])  # the last is padding
    p = (logits[:5].double() / temperature).softmax(0)
    order = p.argsort(descending=True)
    kept = torch.zeros(5, dtype=torch.bool)
    kept[order[: int((p[order].cumsum(0) < top_p - 1e-9).sum()) + 1]] = True
    expected = torch.where(kept, p, 0.0) / p[kept].sum()
    count = 20_000
    found = draw(logits.expand(count, -1), 5, numbers(count), Drawing(temperature, top_p))
    share = torch.bincount(found.ids, minlength=5) / count
    assert (share - expected).abs().max() < 4 * (0.25 / count) ** 0.5
    assert not share[~kept].any()
    torch.testing.assert_close(found.drawn_logps, expected.log()[found.ids])
    torch.testing.assert_close(found.logps, logits[:5].double().log_softmax(0)[found.ids])


def test_the_likeliest_of_equals_is_the_lowest_and_the_ends_of_the_interval_are_drawn() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, -torch.inf]])
    assert draw(logits, 4, torch.zeros(1, dtype=torch.float64), Drawing()).ids.item() == 1
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(logits.expand(2, -1), 4, ends, Drawing(1.0)).ids.tolist() == [0, 2]


def test_numbers_are_uniform_and_independent() -> None:
    grid = torch.tensor([[uniform(seed, place) for place in range(64)] for seed in range(64)], dtype=torch.float64)
    assert grid.min() >= 0 and grid.max() < 1 and len(grid.unique()) == 4096
    assert abs(grid.mean() - 0.5) < 4 * (1 / 12 / 4096) ** 0.5
    for shifted in (grid.roll(1, 0), grid.roll(1, 1)):
        assert abs(torch.corrcoef(torch.stack((grid.flatten(), shifted.flatten())))[0, 1]) < 4 / 64
