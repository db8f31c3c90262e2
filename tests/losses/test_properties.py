"""Laws that hold for every loss and every batch."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_rpo.losses import LossTerms, PairLogprobs

from .cases import VARIANTS, random_batch, rows, variant_id, variant_loss

_QUICK = settings(max_examples=15, deadline=None, derandomize=True)
batches = st.builds(
    random_batch, st.integers(1, 12), seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.float64])
)
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)


def assert_terms(left: LossTerms, right: LossTerms) -> None:
    for spec in fields(LossTerms):
        ours, theirs = getattr(left, spec.name), getattr(right, spec.name)
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(ours, theirs)
        else:
            assert ours == theirs


def pick(terms: LossTerms, index) -> LossTerms:
    return LossTerms(
        **{
            spec.name: value[index] if isinstance(value := getattr(terms, spec.name), torch.Tensor) else value
            for spec in fields(LossTerms)
        }
    )


def assert_same_batch(left: PairLogprobs, right: PairLogprobs) -> None:
    for spec in fields(PairLogprobs):
        ours, theirs = getattr(left, spec.name), getattr(right, spec.name)
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@_QUICK
@given(batches)
def test_turning_round_is_an_involution(x):
    assert_same_batch(x.swapped().swapped(), x)


@every_variant
@_QUICK
@given(x=batches)
def test_turning_round_twice_gives_the_same_terms(variant, x):
    loss = variant_loss(variant)
    assert_terms(loss.terms(x.swapped().swapped()), loss.terms(x))


@every_variant
@_QUICK
@given(x=batches, seed=st.integers(0, 2**31))
def test_permuting_pairs_permutes_losses(variant, x, seed):
    loss, order = variant_loss(variant), torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    assert_terms(loss.terms(rows(x, order)), pick(loss.terms(x), order))
    torch.testing.assert_close(loss(rows(x, order)), loss(x)[order])


@every_variant
@_QUICK
@given(x=batches, cut=st.integers(0, 12))
def test_splitting_a_batch_changes_nothing(variant, x, cut):
    loss, whole = variant_loss(variant), variant_loss(variant).terms(x)
    cut = min(cut, len(x))
    for part in (slice(0, cut), slice(cut, None)):
        assert_terms(loss.terms(rows(x, part)), pick(whole, part))


@every_variant
@_QUICK
@given(x=batches)
def test_losses_are_pure(variant, x):
    """Neither the batch nor the loss remembers a call."""
    loss = variant_loss(variant)
    first = loss.terms(x)
    loss(x), loss.terms(x.swapped())
    for spec in fields(LossTerms):
        ours, theirs = getattr(loss.terms(x), spec.name), getattr(first, spec.name)
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
