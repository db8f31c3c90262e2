"""Strengths that the prompt decides: the plain model where there is one prompt, planted classes, topics, the router."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from nemo_rpo.cli import main
from nemo_rpo.commands.rankings.by_prompt import read_costs
from nemo_rpo.data.formats import read_parsed
from nemo_rpo.data.layouts.battles import between
from nemo_rpo.errors import ConfigError, DataError, RowError
from nemo_rpo.losses import PairLogprobs, build_loss
from nemo_rpo.ranking import RankSettings, fit
from nemo_rpo.ranking.prompts.leaderboards import board, boards, win_rates
from nemo_rpo.ranking.prompts.router import best_without_prompts, route

from .games import drawn

PLAIN = RankSettings(prior=0.0, ties="half", bootstrap=0)


def head_fitted(loss, prompts: torch.Tensor, won, lost, tie, ridge: float = 0.0, **columns) -> torch.Tensor:
    """The head's weights [M, h] that maximise the likelihood, from hidden states ``prompts`` [n, h]."""
    players = int(max(won.max(), lost.max())) + 1
    weight = torch.zeros(players, prompts.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=300, tolerance_grad=1e-11, tolerance_change=0, history_size=50,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        of_pair = {"coefficients": prompts @ weight.t(), "tie": tie, **columns}
        x = PairLogprobs(None, None, response_columns={"player": (won, lost)}, pair_columns=of_pair)
        value = loss(x).mean() + ridge * weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return weight.detach()


def sides(comparisons) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    second_won = comparisons.outcome < 0
    won = np.where(second_won, comparisons.second, comparisons.first)
    lost = np.where(second_won, comparisons.first, comparisons.second)
    return torch.from_numpy(won), torch.from_numpy(lost), torch.from_numpy(comparisons.outcome == 0)


@pytest.mark.parametrize("ties", [0.0, 0.2])
def test_with_one_prompt_it_is_the_plain_model(ties):
    comparisons, _ = drawn(3, players=6, games=900, ties=ties)
    plain = fit(comparisons, PLAIN).strengths.log_strength
    weight = head_fitted(build_loss("p2l_bt"), torch.ones(900, 1, dtype=torch.float64), *sides(comparisons))[:, 0]
    np.testing.assert_allclose((weight - weight.mean()).numpy(), plain, atol=1e-6)


def test_it_agrees_with_choix():
    choix = pytest.importorskip("choix", reason="the cross-check needs choix: pip install choix")
    comparisons, _ = drawn(4, players=5, games=600)
    won, lost, tie = sides(comparisons)
    weight = head_fitted(build_loss("p2l_bt"), torch.ones(600, 1, dtype=torch.float64), won, lost, tie)[:, 0]
    theirs = choix.ilsr_pairwise(5, list(zip(won.tolist(), lost.tolist(), strict=True)), tol=1e-10)
    np.testing.assert_allclose((weight - weight.mean()).numpy(), theirs - theirs.mean(), atol=1e-6)


def test_two_planted_classes_of_prompts_come_back_and_the_plain_model_has_neither():
    errors, blind = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        theta = rng.normal(size=(2, 5))
        theta -= theta.mean(1, keepdims=True)
        kind = rng.integers(2, size=6000)
        first = rng.integers(5, size=6000)
        second = (first + rng.integers(1, 5, size=6000)) % 5
        up = rng.random(6000) < 1 / (1 + np.exp(theta[kind, second] - theta[kind, first]))
        won, lost = (torch.from_numpy(np.where(up, *pair)) for pair in ((first, second), (second, first)))
        one_hot = torch.eye(2, dtype=torch.float64)[torch.from_numpy(kind)]
        weight = head_fitted(build_loss("p2l_bt"), one_hot, won, lost, torch.zeros(6000))
        found = (weight - weight.mean(0)).numpy().T
        errors.append(np.abs(found - theta).max())
        blind.append(np.abs(found.mean(0) - theta).max())
    assert max(errors) < 0.25 < min(blind), (errors, blind)


@pytest.mark.parametrize(("name", "outcomes"), [("p2l_rao_kupper", 3), ("p2l_bag", 4)])
def test_the_outcomes_sum_to_one_at_any_strengths(name, outcomes):
    of = torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    width = torch.linspace(-40, 60, 200, dtype=torch.float64)
    players = torch.zeros(200), torch.ones(200)
    columns = {"coefficients": of, "tie_width": width}
    x = PairLogprobs(None, None, response_columns={"player": players}, pair_columns=columns)
    said = build_loss(name).outcome_log_probs(x)
    assert said.shape == (200, outcomes) and said.isfinite().all()
    torch.testing.assert_close(said.exp().sum(1), torch.ones(200, dtype=torch.float64), atol=1e-12, rtol=0)


def test_its_rao_kupper_is_todo_with_the_other_sign():
    u = torch.linspace(-4, 4, 9, dtype=torch.float64)
    zero, width = torch.zeros_like(u), 10 * torch.log1p(torch.exp(torch.tensor(-2.25, dtype=torch.float64)))
    columns = {"coefficients": torch.stack([u, zero], 1), "tie_width": zero}
    players = {"player": (zero, zero + 1)}
    ours = build_loss("p2l_rao_kupper").outcome_log_probs(
        PairLogprobs(None, None, response_columns=players, pair_columns=columns)
    )
    todo = build_loss("todo", beta=1.0, theta=-width.item())
    theirs = todo.outcome_log_probs(PairLogprobs(u, zero, zero, zero, pair_columns={"tie": zero}))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_the_board_of_one_prompt_is_its_own_strengths_and_of_topics_what_endless_battles_give():
    theta = np.random.default_rng(1).normal(size=(40, 4))
    one = board("all", theta[:1], PLAIN)
    np.testing.assert_allclose(one.score, theta[0] - theta[0].mean(), atol=1e-8)
    np.testing.assert_allclose(one.win_rate, win_rates(theta[:1])[0], atol=1e-12)
    found = boards(theta, ["b", "a", None, "a"] * 10, RankSettings(bootstrap=20))
    assert [(of.name, of.prompts) for of in found] == [("all", 40), ("a", 20), ("b", 10)]
    wins = (1 / (1 + np.exp(theta[:, None, :] - theta[:, :, None]))).mean(0)
    expected = 1 / (1 + np.exp(found[0].score[None, :] - found[0].score[:, None]))
    np.testing.assert_allclose(expected.sum(1), wins.sum(1), atol=1e-7)  # the score equations of Bradley-Terry
    assert all((of.low <= of.high).all() for of in found)


def test_the_router_is_the_best_of_all_assignments():
    rng = np.random.default_rng(2)
    for _ in range(20):
        value, cost = rng.random((4, 3)), rng.random(3)
        budget = rng.uniform(cost.min(), cost.max())
        found = route(value, cost, budget)
        fits = [a for a in itertools.product(range(3), repeat=4) if cost[list(a)].mean() <= budget]
        best = max(np.mean([value[x, a] for x, a in enumerate(assigned)]) for assigned in fits)
        # Mixing two assignments, an optimum of the program lies on a line between them; whole ones are no better.
        whole = {
            a: (cost[list(a)].mean(), np.mean([value[x, m] for x, m in enumerate(a)]))
            for a in itertools.product(range(3), repeat=4)
        }
        mixed = best
        for (c, v), (d, w) in itertools.permutations(whole.values(), 2):
            if c <= budget < d:
                share = (budget - c) / (d - c)
                mixed = max(mixed, (1 - share) * v + share * w)
        assert found.value == pytest.approx(mixed, abs=1e-9) and found.value >= best - 1e-9
        assert found.cost <= budget + 1e-9
        assert found.value >= best_without_prompts(value, cost, budget).value - 1e-9
    rich = route(value, cost, cost.max())
    assert rich.value == pytest.approx(value.max(1).mean()) and rich.price == pytest.approx(0, abs=1e-9)
    with pytest.raises(ConfigError, match="--budget 0 is below the cheapest routing"):
        route(value, cost, 0.0)


def test_a_missing_or_doubled_cost_is_named(tmp_path):
    path = tmp_path / "costs.csv"
    path.write_text("model,cost\na,1\nb,2\n")
    np.testing.assert_array_equal(read_costs(path, ["b", "a"]), [2, 1])
    with pytest.raises(DataError, match="has no cost of c"):
        read_costs(path, ["a", "c"])
    path.write_text("model,cost\na,1\na,2\n")
    with pytest.raises(DataError, match="'a' has another cost in an earlier row"):
        read_costs(path, ["a"])


BATTLE = {"prompt": "Why?", "model_a": "x", "model_b": "y", "winner": "model_a", "judge": "j1"}


def read(tmp_path, *rows, **keys):
    from nemo_rpo.data.data_settings import RowFormat

    path = tmp_path / "battles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [parsed.row for parsed in read_parsed([path], RowFormat(**keys))]


def test_a_battle_is_a_pair_of_names(tmp_path):
    conversation = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    other = [conversation[0], {"role": "assistant", "content": "Else."}]
    arena = {**BATTLE, "conversation_a": conversation, "conversation_b": other, "winner": "tie (bothbad)"}
    del arena["prompt"]
    said = [{**BATTLE, "winner": winner} for winner in ("model_a", "b", "y", "tie", "both_bad")]
    rows = read(tmp_path, *said, players=["y", "x"])
    assert [row.votes[0].sign for row in rows] == [1, -1, -1, 0, 0]
    assert [row.columns["both_bad"] for row in rows] == [0, 0, 0, 0, 1]
    assert {(row.chosen, row.rejected, row.votes[0].annotator) for row in rows} == {("x", "y", "j1")}
    assert {(row.columns["chosen_player"], row.columns["rejected_player"]) for row in rows} == {(1, 0)}
    assert len({row.pair_id for row in rows}) == 5, "each row is a battle of its own"
    [row] = read(tmp_path, arena, layout="battles")
    assert row.prompt == conversation[:1] and row.columns == {"both_bad": 1} and row.chosen[0]["content"] == "x"
    [row] = read(tmp_path, {**arena, "winner": "model_b"})  # told by itself, it is a pair of answers
    assert row.chosen == conversation[1:]


def test_what_is_no_battle_of_these_models_is_refused(tmp_path):
    [row] = read(tmp_path, BATTLE)
    with pytest.raises(RowError, match=r"battles.jsonl:1: 'x' is not in model.data.players \(y, z\)"):
        between(row, ("y", "z"))
    with pytest.raises(RowError, match="'x' is compared with itself"):
        read(tmp_path, {**BATTLE, "model_b": "x"})
    assert main(["rank", str(tmp_path / "battles.jsonl"), "--by-prompt", str(tmp_path), "--budget", "1"]) == 2
