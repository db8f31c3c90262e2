"""Figures against their definitions, intervals against what they promise, the paired test against chance."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_rpo.errors import DataError
from nemo_rpo.evaluation.judgements import FIGURES, by_annotator, compare, judge
from nemo_rpo.evaluation.scores import Scores
from nemo_rpo.report.calibration_bins import calibration


def scores(
    delta: np.ndarray, prompts: int | np.ndarray | None = None, sign: np.ndarray | None = None, gold=None
) -> Scores:
    n = len(delta)
    ids = np.array([f"p{i}" for i in range(n)], dtype=object)
    names = np.array([f"w{i % 3}" for i in range(n)], dtype=object)
    of = prompts if isinstance(prompts, np.ndarray) else np.arange(n) % (prompts or n)
    prompt = np.array([f"q{i}" for i in of], dtype=object)
    sign = np.ones(n, np.int8) if sign is None else sign
    return Scores(ids, names, prompt, sign, np.zeros(n, np.int8) if gold is None else gold, delta)


def test_figures_are_those_of_the_definitions() -> None:
    rng = np.random.default_rng(0)
    delta, sign = rng.normal(0.5, 1.5, 500), rng.choice((-1, 1), 500).astype(np.int8)
    found, margin = judge(scores(delta, sign=sign), 200, 0), sign * delta
    expected = calibration(margin)
    assert found["accuracy"].value == pytest.approx((margin > 0).mean())
    assert found["margin"].value == pytest.approx(margin.mean())
    assert found["ece"].value == pytest.approx(expected.ece)
    assert found["brier"].value == pytest.approx(expected.brier)
    assert found["log_loss"].value == pytest.approx(expected.log_loss)
    assert all(found[name].low < found[name].value < found[name].high or name == "ece" for name in FIGURES)


def test_gold_goes_before_the_label() -> None:
    delta = np.array([1.0, -2.0, 3.0])
    gold = np.array([-1, 0, 1], np.int8)
    found = scores(delta, sign=np.array([1, -1, 1], np.int8), gold=gold)
    assert found.margin.tolist() == [-1.0, 2.0, 3.0]
    # Whom the policy agrees with is a matter of what they said.
    assert {name: share.value for name, share in by_annotator(found)} == {"w0": 1.0, "w1": 1.0, "w2": 1.0}


def test_intervals_hold_what_they_promise() -> None:
    """Prompts of ten like-minded pairs: 95 % intervals cover the truth about that often; label-wise ones do not."""
    rng, covered, naive = np.random.default_rng(1), 0, 0
    for trial in range(200):
        right = rng.random(60) < 0.7  # a prompt is won or lost as a whole
        delta = np.tile(np.where(right, 1.0, -1.0), 10)
        found = judge(scores(delta, prompts=60), 300, trial)["accuracy"]
        covered += found.low <= 0.7 <= found.high
        alone = judge(scores(delta), 300, trial)["accuracy"]
        naive += alone.low <= 0.7 <= alone.high
    assert 0.89 <= covered / 200 <= 0.99 and naive / 200 < 0.7


@pytest.mark.parametrize("prompts", [6, 12])
def test_intervals_of_few_prompts_are_wide_enough(prompts: int) -> None:
    rng, covered, percentiles = np.random.default_rng(5), 0, 0
    for trial in range(200):
        means = rng.normal(0, 1, prompts)  # of a prompt's margins, whose mean over prompts is 0
        low, high = judge(scores(np.repeat(means, 3), np.repeat(np.arange(prompts), 3)), 400, trial)["margin"][1:]
        covered += low <= 0 <= high
        drawn = np.random.default_rng(trial).multinomial(prompts, np.full(prompts, 1 / prompts), 400) @ means / prompts
        percentiles += np.quantile(drawn, 0.025) <= 0 <= np.quantile(drawn, 0.975)
    assert covered / 200 >= 0.92 and covered > percentiles + 4


@pytest.mark.parametrize("prompts", [4, 12])
def test_differences_over_few_prompts(prompts: int) -> None:
    """Where prompts differ in what the policies gain, no more than a twentieth of the intervals miss a gain of 0; where
    they agree, four are enough.
    """
    rng, wrong = np.random.default_rng(6), 0
    of, mine = np.repeat(np.arange(prompts), 40), np.ones(40 * prompts)
    for trial in range(150):
        p = np.clip(0.5 + rng.normal(0, 0.15, prompts), 0, 1)[of]
        ours, theirs = np.where(rng.random((2, len(of))) < [p, 1 - p], 1.0, -1.0)
        gain = compare(scores(ours, of), scores(theirs, of), 200, trial).differences["accuracy"]
        wrong += not gain.low <= 0 <= gain.high
    assert wrong / 150 <= 0.09
    clear = compare(scores(mine, of), scores(np.where(rng.random(len(of)) < 0.6, 1.0, -1.0), of), 200, 0)
    assert clear.differences["accuracy"].low > 0


def test_a_real_difference_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(1.0, 1.0, 400)
    better, worse, other = (
        truth + rng.normal(0, 0.3, 400),
        truth + rng.normal(0, 2.0, 400),
        truth + rng.normal(0, 0.3, 400),
    )
    found = compare(scores(better), scores(worse), 1000, 0)
    assert found.p_value < 0.01 and found.differences["accuracy"].low > 0 and found.won > found.lost
    assert found.differences["log_loss"].high < 0
    same = compare(scores(better), scores(other), 1000, 0)
    assert same.p_value > 0.05 and same.differences["accuracy"].low < 0 < same.differences["accuracy"].high
    assert compare(scores(better), scores(better), 100, 0).p_value == 1.0


def test_the_test_is_fair() -> None:
    """Under no difference it speaks up in about one case of twenty."""
    rng, found = np.random.default_rng(3), 0
    for trial in range(150):
        truth = np.repeat(rng.normal(0.5, 1, 40), 3)
        ours, theirs = (truth + rng.normal(0, 1, 120) for _ in range(2))
        prompts = np.repeat(np.arange(40), 3).astype(str).astype(object)
        pair = [Scores(s.pair_id, s.annotator, prompts, s.sign, s.gold, s.delta) for s in map(scores, (ours, theirs))]
        found += compare(*pair, 20, trial).p_value < 0.05
    assert found / 150 < 0.1


def test_labels_are_matched_by_who_and_what() -> None:
    rng = np.random.default_rng(4)
    ours = scores(rng.normal(1, 1, 50))
    order = rng.permutation(50)[:40]
    theirs = Scores(
        *(getattr(ours, name)[order] for name in ("pair_id", "annotator", "prompt", "sign", "gold", "delta"))
    )
    found = compare(ours, theirs, 50, 0)
    assert found.labels == 40 and found.differences["accuracy"].value == 0
    strangers = Scores(
        theirs.pair_id + "x", *(getattr(theirs, n) for n in ("annotator", "prompt", "sign", "gold", "delta"))
    )
    with pytest.raises(DataError, match="no label in common"):
        compare(ours, strangers, 50, 0)
