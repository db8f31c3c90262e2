"""``PairLogprobs``: turning round, shapes, sides, and what is refused."""

from __future__ import annotations

import pytest
import torch

from nemo_rpo.errors import ConfigError
from nemo_rpo.losses import COLUMNS, PairLogprobs, build_loss, loss_names

from .cases import VARIANTS, random_batch, variant_id, variant_loss


def test_turning_round_exchanges_responses_and_leaves_the_label():
    x = random_batch(3)
    turned = x.swapped()
    assert turned.policy() == (x.policy_rejected, x.policy_chosen)
    assert (turned.reference_chosen, turned.reference_rejected) == (x.reference_rejected, x.reference_chosen)
    assert (turned.chosen_length, turned.rejected_length) == (x.rejected_length, x.chosen_length)
    for name, (chosen, rejected) in x.response_columns.items():
        assert turned.response_columns[name] == (rejected, chosen)
    assert dict(turned.pair_columns) == dict(x.pair_columns)


def test_the_number_of_pairs():
    assert len(random_batch(5)) == 5
    assert len(PairLogprobs(None, None, response_columns={"score": (torch.zeros(2), torch.zeros(2))})) == 2


def test_lengths_of_nothing_are_not_divided_by():
    """A completion that truncation emptied is masked later; until then it must not be NaN."""
    x = PairLogprobs(torch.zeros(1), -torch.ones(1), chosen_length=torch.tensor([0]), rejected_length=torch.tensor([4]))
    assert x.mean_policy()[0].item() == 0
    assert build_loss("simpo")(x).isfinite().all()


def test_a_column_of_the_label_cannot_travel_with_the_responses():
    two = (torch.zeros(1), torch.zeros(1))
    with pytest.raises(ConfigError, match="'margin' belongs to the label: pass it in pair_columns"):
        PairLogprobs(*two, response_columns={"margin": two})
    with pytest.raises(ConfigError, match=r"'kl' follows the response: pass .* in response_columns"):
        PairLogprobs(*two, pair_columns={"kl": two[0]})


def test_shapes_that_do_not_meet_are_named():
    with pytest.raises(ConfigError, match=r"policy_chosen \[2\], policy_rejected \[3\]"):
        PairLogprobs(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ConfigError, match=r"first dimension \[pairs\]"):
        PairLogprobs(torch.tensor(0.0), torch.tensor(0.0))
    with pytest.raises(ConfigError, match="holds no tensor"):
        PairLogprobs(None, None)


def everything_but(need: str) -> PairLogprobs:
    """A full batch without ``need``."""
    x = random_batch(2)
    fields = {
        "policy": x.policy(),
        "reference": (x.reference_chosen, x.reference_rejected),
        "lengths": (x.chosen_length, x.rejected_length),
    }
    two = [tensor for name, pair in fields.items() for tensor in (pair if name != need else (None, None))]
    return PairLogprobs(
        *two,
        {name: columns for name, columns in x.response_columns.items() if name != need},
        {name: column for name, column in x.pair_columns.items() if name != need},
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_what_is_missing_is_named_and_nothing_else_is_asked_for(variant):
    loss = variant_loss(variant)
    for need in ["policy", "reference", "lengths", *COLUMNS]:
        x = everything_but(need)
        if need not in loss.needs:
            loss(x), loss.terms(x)
            continue
        named = {"policy": "policy_chosen", "reference": "reference_chosen", "lengths": "chosen_length"}.get(need, need)
        for call in (loss, loss.terms):
            with pytest.raises(ConfigError, match=f"the loss '{loss.name}' needs .*{named}"):
                call(x)


def test_every_column_is_used_by_a_loss():
    needed = set().union(*(variant_loss(variant).needs for variant in VARIANTS))
    assert set(COLUMNS) == needed - {"policy", "reference", "lengths"}


def test_every_registered_loss_is_among_the_variants():
    assert {name for name, _ in VARIANTS} == set(loss_names())
