"""Krippendorff's α against published figures and the package of that name."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from nemo_rpo.validation import agreement
from nemo_rpo.validation.agreement import krippendorff_alpha

# Example C of Krippendorff (2011): four observers, twelve units, five values; units are columns, · is no rating.
OBSERVERS = ("1 2 3 3 2 1 4 1 2 · · ·", "1 2 3 3 2 2 4 1 2 5 · 3", "· 3 3 3 2 3 4 2 2 5 1 ·", "1 2 3 3 2 4 4 1 2 5 1 ·")


def counts_of(observers: tuple[str, ...]) -> np.ndarray:
    ratings = np.array([[0 if value == "·" else int(value) for value in line.split()] for line in observers])
    return np.stack([(ratings == value).sum(0) for value in range(1, ratings.max() + 1)], axis=1)


def test_the_published_example():
    assert krippendorff_alpha(counts_of(OBSERVERS)) == pytest.approx(0.743, abs=5e-4)


def test_against_the_package():
    package = pytest.importorskip("krippendorff")
    rng = np.random.default_rng(0)
    for categories in (2, 3, 5):
        counts = rng.integers(0, 4, size=(60, categories))
        expected = package.alpha(value_counts=counts, level_of_measurement="nominal")
        assert krippendorff_alpha(counts) == pytest.approx(expected, abs=1e-12)


def test_where_there_is_nothing_to_agree_on_it_is_undefined():
    assert krippendorff_alpha(np.zeros((0, 3), dtype=int)) is None
    assert krippendorff_alpha(np.array([[1, 0], [0, 1]])) is None, "one rating a unit"
    assert krippendorff_alpha(np.array([[2, 0], [3, 0]])) is None, "one category"


def test_full_agreement_is_one_and_full_disagreement_below_zero():
    assert krippendorff_alpha(np.array([[3, 0], [0, 3], [3, 0]])) == 1
    assert krippendorff_alpha(np.array([[1, 1], [1, 1]])) < 0


def test_the_doctest():
    assert doctest.testmod(agreement).failed == 0
