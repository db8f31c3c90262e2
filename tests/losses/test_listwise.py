"""Rankings: Plackett-Luce, PRO, BRAIn, their pairs, padding, and gradients."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from nemo_rpo.errors import ConfigError
from nemo_rpo.losses import RankingLogprobs, build_loss

SCORES = torch.tensor([[-0.5, -0.9, -1.3, -1.1]], dtype=torch.float64)
REWARDS = torch.tensor([[2.0, 1.0, 0.5, -1.0]], dtype=torch.float64)


def random_rankings(n: int = 4, prompts: int = 5, seed: int = 0) -> RankingLogprobs:
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> torch.Tensor:
        return torch.randn(prompts, n, generator=generator, dtype=torch.float64) * scale

    reference = -40 + normal(8)
    columns = {
        "reward": normal(2).sort(-1, descending=True).values,
        "base_logps": reference + normal(1),
        "score": normal(2),
    }
    length = torch.randint(5, 50, (prompts, n), generator=generator)
    return RankingLogprobs(reference + normal(2), reference, length, columns)


LISTWISE = [
    ("plackett_luce", {}),
    ("plackett_luce", {"scores": "reward"}),
    ("pro", {}),
    ("pro", {"sft_weight": 0.0}),
    ("brain", {"gamma": 0.5}),
]
every_loss = pytest.mark.parametrize(("name", "options"), LISTWISE)


def test_plackett_luce_value():
    loss = build_loss("plackett_luce", scores="reward")
    assert loss.ranking(RankingLogprobs(None, columns={"score": SCORES})).item() == pytest.approx(
        2.6915420712, abs=1e-10
    )


def test_plackett_luce_sums_to_one_over_all_orders():
    loss, total, either_way = build_loss("plackett_luce", scores="reward"), 0.0, 0.0
    for order in itertools.permutations(range(4)):
        p = math.exp(-loss.ranking(RankingLogprobs(None, columns={"score": SCORES[:, list(order)]})).item())
        total += p
        if order in {(0, 1, 2, 3), (3, 2, 1, 0)}:
            either_way += p
    assert total == pytest.approx(1, abs=1e-12)
    # Why a ranking is split into pairs: with its reverse it does not exhaust what could have been said.
    assert either_way < 0.1


def test_plackett_luce_by_its_definition():
    x = random_rankings()
    s = 0.1 * (x.policy - x.reference)
    expected = [
        sum(math.log(sum(math.exp(v) for v in row[k:])) - row[k] for k in range(len(row))) for row in s.tolist()
    ]
    got = build_loss("plackett_luce").ranking(x)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def pro_by_its_definition(s: list[float], r: list[float]) -> float:
    total = 0.0
    for t in range(len(s) - 1):
        gaps = [r[t] - r[i] for i in range(t + 1, len(s))]
        own = math.exp(s[t] * max(gaps))
        rest = sum(math.exp(s[t + 1 + i] * gap) for i, gap in enumerate(gaps))
        total -= math.log(own / (own + rest))
    return total


def test_pro_value():
    x = RankingLogprobs(SCORES, length=torch.ones(1, 4), columns={"reward": REWARDS})
    assert build_loss("pro", sft_weight=0.0).ranking(x).item() == pytest.approx(3.7167607224, abs=1e-9)


def test_pro_by_its_definition():
    x = random_rankings(5)
    s = x.policy / x.length
    expected = [pro_by_its_definition(*row) for row in zip(s.tolist(), x.columns["reward"].tolist(), strict=True)]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(build_loss("pro", sft_weight=0.0).ranking(x), expected)
    anchored = build_loss("pro", sft_weight=0.02).ranking(x)
    torch.testing.assert_close(anchored, expected - 0.02 * 16 * x.policy[:, 0])


def test_pro_with_unit_gaps_is_plackett_luce():
    """Three rewards cannot all be a unit apart, so it takes a ranking of two."""
    x = random_rankings(2)
    x = replace(x, columns={**x.columns, "reward": torch.tensor([[1.0, 0.0]]).expand(5, -1)})
    mean = replace(x, columns={"score": x.policy / x.length})
    pro = build_loss("pro", sft_weight=0.0).ranking(x)
    torch.testing.assert_close(pro, build_loss("plackett_luce", scores="reward").ranking(mean))


def test_brain_value():
    x = RankingLogprobs(
        torch.tensor([[-2.8, -4.1, -5.2]], dtype=torch.float64),
        torch.tensor([[-3.0, -4.0, -5.0]], dtype=torch.float64),
        columns={
            "reward": torch.tensor([[1.0, 0.2, -0.5]], dtype=torch.float64),
            "base_logps": torch.tensor([[-3.2, -3.9, -5.1]], dtype=torch.float64),
        },
    )
    assert build_loss("brain", gamma=0.5).ranking(x).item() == pytest.approx(0.8619258572, abs=1e-10)


def test_brain_gradient_is_the_difference_of_its_weights():
    x = random_rankings(3)
    policy = x.policy.clone().requires_grad_()
    loss = build_loss("brain", gamma=0.5).ranking(replace(x, policy=policy))
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    proposal = x.columns["base_logps"]
    alpha = (x.reference + x.columns["reward"] / 0.5 - proposal).softmax(-1)
    torch.testing.assert_close(gradient, (x.policy - proposal).softmax(-1) - alpha)


@every_loss
def test_a_ranking_of_two_is_the_pair(name, options):
    loss, x = build_loss(name, **options), random_rankings(2)
    pairs, weight = x.split()
    torch.testing.assert_close(loss.ranking(x), loss(pairs))
    assert (weight == 1).all()


@every_loss
def test_padding_changes_nothing(name, options):
    loss, x = build_loss(name, **options), random_rankings(4)
    short = RankingLogprobs(
        x.policy[:, :3], x.reference[:, :3], x.length[:, :3], {key: value[:, :3] for key, value in x.columns.items()}
    )
    padded = replace(x, size=torch.full((5,), 3))
    torch.testing.assert_close(loss.ranking(padded), loss.ranking(short))
    pairs, weight = padded.split()
    assert weight.view(5, -1).sum(-1).allclose(torch.ones(5))
    total = (loss(pairs) * weight).view(5, -1).sum(-1)
    expected, expected_weight = short.split()
    torch.testing.assert_close(total, (loss(expected) * expected_weight).view(5, -1).sum(-1))


@every_loss
def test_a_single_response_says_nothing(name, options):
    x = replace(random_rankings(3), size=torch.ones(5, dtype=torch.long))
    loss = build_loss(name, **options).ranking(x)
    torch.testing.assert_close(loss, torch.zeros_like(loss))
    assert not x.split()[1].any()


@every_loss
def test_gradients_with_padding(name, options):
    loss, x = build_loss(name, **options), random_rankings(4, prompts=3)
    size = torch.tensor([4, 2, 3])

    def value(policy, score):
        return loss.ranking(replace(x, policy=policy, columns={**x.columns, "score": score}, size=size))

    leaves = [tensor.clone().requires_grad_() for tensor in (x.policy, x.columns["score"])]
    assert torch.autograd.gradcheck(value, leaves)
    far = [(tensor * 1e3).float().detach().requires_grad_() for tensor in leaves]
    out = value(*far)
    assert out.isfinite().all()
    gradients = torch.autograd.grad(out.sum(), far, allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_the_split_keeps_every_column_with_its_response():
    x = random_rankings(3, prompts=2)
    pairs, weight = x.split()
    assert len(pairs) == 6
    better, worse = [0, 0, 1], [1, 2, 2]
    assert torch.equal(pairs.policy_chosen, x.policy[:, better].flatten())
    assert torch.equal(pairs.policy_rejected, x.policy[:, worse].flatten())
    chosen, rejected = pairs.response_columns["base_logps"]
    assert torch.equal(chosen, x.columns["base_logps"][:, better].flatten())
    assert torch.equal(rejected, x.columns["base_logps"][:, worse].flatten())
    reward = x.columns["reward"]
    assert torch.equal(pairs.pair_columns["margin"], (reward[:, better] - reward[:, worse]).flatten())
    torch.testing.assert_close(weight, torch.full((6,), 1 / 3))


@every_loss
def test_what_rankings_miss_is_named(name, options):
    bare = RankingLogprobs(torch.zeros(1, 2))
    with pytest.raises(ConfigError, match=f"the loss '{name}' needs what these rankings do not have"):
        build_loss(name, **options).ranking(bare)


def test_shapes_that_do_not_meet_are_named():
    with pytest.raises(ConfigError, match=r"\(1, 2\), \(1, 3\)"):
        RankingLogprobs(torch.zeros(1, 2), torch.zeros(1, 3))
