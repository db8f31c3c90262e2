"""Pairs keep their gap, annotators their share of the pairs and their reliability."""

import numpy as np
import pytest

from nemo_rpo.errors import ConfigError
from nemo_rpo.world.language import Language, LanguageConfig, stream
from nemo_rpo.world.simulated_annotators import AnnotatorConfig, ask, draw_pairs


@pytest.fixture(scope="module")
def language() -> Language:
    return Language(LanguageConfig(), seed=0)


@pytest.mark.parametrize("min_gap", [0.5, 2.0])
def test_every_pair_has_the_gap_it_claims(language, min_gap):
    pairs = draw_pairs(language, 500, min_gap, stream(0, "train"))
    assert len(pairs) == 500
    gap = language.quality(pairs.style, pairs.better) - language.quality(pairs.style, pairs.worse)
    np.testing.assert_allclose(gap, pairs.gap, atol=1e-12)
    assert gap.min() >= min_gap


def test_a_gap_that_hardly_ever_occurs_is_an_error(language):
    with pytest.raises(ConfigError, match="min_gap 80"):
        draw_pairs(language, 10, 80.0, stream(0, "train"))


@pytest.mark.parametrize("labels_per_pair", [1, 3, 5, 12])
def test_everyone_labels_equally_often_and_no_pair_twice(labels_per_pair):
    config = AnnotatorConfig(labels=60, labels_per_pair=labels_per_pair)
    votes = ask(config, stream(0, "annotators"))
    assert votes.annotator.shape == (config.pairs, labels_per_pair)
    assert np.bincount(votes.annotator.ravel()).tolist() == [60] * 12
    assert all(len(set(row)) == labels_per_pair for row in votes.annotator.tolist())


def test_realised_accuracy_is_within_the_binomial_noise_of_the_reliability():
    config = AnnotatorConfig(labels=20_000)
    votes = ask(config, stream(0, "annotators"))
    for k, reliability in enumerate(config.reliabilities):
        assert votes.realised_accuracy(k) == votes.correct[votes.annotator == k].mean()
        assert votes.realised_accuracy(k) == pytest.approx(reliability, abs=4 * 0.5 / 20_000**0.5)


def test_perfect_and_inverted_annotators_are_exact():
    votes = ask(AnnotatorConfig((1.0, 0.0), labels=50), stream(0, "annotators"))
    assert votes.realised_accuracy(0) == 1.0 and votes.realised_accuracy(1) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reliabilities": (0.5, 1.2)}, r"probabilities, got \[1.2\]"),
        ({"reliabilities": ()}, "got none"),
        ({"labels_per_pair": 13}, "between 1 and the 12 annotators, got 13"),
        ({"labels": 100, "labels_per_pair": 3}, r"labels \(100\) must be a positive multiple of labels_per_pair \(3\)"),
    ],
)
def test_contradictions_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        AnnotatorConfig(**settings)
