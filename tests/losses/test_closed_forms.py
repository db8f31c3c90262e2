"""Every loss against its equation in plain numbers, at random rows, in both directions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nemo_rpo.losses import PairLogprobs

from . import closed_forms
from .cases import VARIANTS, random_batch, variant_id, variant_loss


def row(x: PairLogprobs, i: int) -> SimpleNamespace:
    """Pair ``i`` as plain numbers."""
    values = {}
    for name, (chosen, rejected) in {
        "policy": x.policy(),
        "reference": (x.reference_chosen, x.reference_rejected),
        "length": (x.chosen_length, x.rejected_length),
        **x.response_columns,
    }.items():
        values[f"{name}_w"], values[f"{name}_l"] = chosen[i].tolist(), rejected[i].tolist()
    return SimpleNamespace(**values, **{name: column[i].tolist() for name, column in x.pair_columns.items()})


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_both_directions_equal_the_equation(variant):
    name, options = variant
    x, loss = random_batch(20, seed=3), variant_loss(variant)
    expected = torch.tensor([getattr(closed_forms, name)(row(x, i), **options) for i in range(20)], dtype=torch.float64)
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(loss(x), expected[:, 0], **close)
    terms = loss.terms(x)
    chosen, rejected = terms.chosen, terms.rejected
    if terms.anchor_chosen is not None:
        chosen, rejected = chosen + terms.anchor_chosen, rejected + terms.anchor_rejected
    torch.testing.assert_close(chosen, expected[:, 0], **close)
    torch.testing.assert_close(rejected, expected[:, 1], **close)
