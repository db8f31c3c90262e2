"""Names, options and their errors."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from dataclasses import dataclass, fields

import pytest

import nemo_rpo.losses
from nemo_rpo.errors import ConfigError
from nemo_rpo.losses import PreferenceLoss, build_loss, loss_class, loss_names, register

from .cases import random_batch

THE_FIELDS_NAMES = """
    dpo f_dpo ipo ipo_avg simpo cpo orpo asft hinge tdpo1 tdpo2 dmpo todo mmpo sppo_hard sppo inpo onpo dno dno_prct
    egpo gpo rpo_sq rpo_fwd_kl rpo_bwd_kl bt bt_margin bt_scaled gpm plackett_luce pro brain cdpo rdpo holder_dpo ropo
    dr_dpo forward_corrected udpo rgpo fa_dpo pal kto apo_zero_unpaired bco genrm p2l_bt p2l_rao_kupper p2l_bag
"""


def test_the_catalogue_is_complete():
    assert set(loss_names()) == set(THE_FIELDS_NAMES.split())


@pytest.mark.parametrize(("typo", "meant"), [("dop", "dpo"), ("simp", "simpo"), ("rpo_bwd", "rpo_bwd_kl")])
def test_a_mistyped_name_is_answered_with_the_nearest(typo, meant):
    with pytest.raises(ConfigError, match=f"unknown loss '{typo}'; did you mean '{meant}'"):
        build_loss(typo)


def test_a_name_like_nothing_is_answered_with_the_list():
    with pytest.raises(ConfigError, match=r"unknown loss 'zzzz'; known: apo_zero_unpaired, asft, .*tdpo2"):
        build_loss("zzzz")


@pytest.mark.parametrize("name", loss_names())
def test_a_mistyped_option_is_refused(name):
    with pytest.raises(ConfigError, match=f"the loss '{name}' has no option 'betta'"):
        build_loss(name, betta=0.1)


def test_a_mistyped_option_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="has no option 'gamma_ratio'; did you mean 'gamma_beta_ratio'"):
        build_loss("simpo", gamma_ratio=0.5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", {"beta": 0}, "option 'beta' of the loss 'dpo' must be above 0; got 0"),
        ("dpo", {"beta": "0.1"}, "option 'beta' of the loss 'dpo' must be above 0; got '0.1'"),
        ("dpo", {"beta": float("nan")}, "must be above 0; got nan"),
        ("dpo", {"beta": True}, "must be above 0; got True"),
        ("dpo", {"average_log_probs": 1}, "must be true or false; got 1"),
        ("f_dpo", {"divergence": "kl"}, "must be one of reverse_kl, forward_kl, js, alpha; got 'kl'"),
        ("f_dpo", {"alpha": 1.5}, "must be at least 0 and at most 1; got 1.5"),
        ("rdpo", {"label_smoothing": 0.5}, "must be at least 0 and below 0.5; got 0.5"),
        ("todo", {"theta": 0.1}, "must be at most 0; got 0.1"),
        ("cpo", {"link_terms": "both"}, "must be one of preference_only, all; got 'both'"),
    ],
)
def test_a_value_out_of_range_is_named(name, options, message):
    with pytest.raises(ConfigError) as caught:
        build_loss(name, **options)
    assert message in str(caught.value)


def test_a_taken_name_is_refused():
    with pytest.raises(ConfigError, match="'dpo' is taken by DPO"):
        register("dpo")(loss_class("ipo"))
    assert loss_class("ipo").name == "ipo"


def test_a_loss_of_ones_own():
    @dataclass(frozen=True)
    class Exponential(PreferenceLoss):
        """Boosting's loss."""

        def pair(self, x):
            chosen, rejected = x.log_ratios()
            return (rejected - chosen).exp()

    try:
        register("exponential")(Exponential)
        terms = build_loss("exponential").terms(random_batch(3))
        assert (terms.delta == terms.rejected - terms.chosen).all()
    finally:
        nemo_rpo.losses.registry._LOSSES.pop("exponential", None)


@pytest.mark.parametrize("name", loss_names())
def test_every_loss_documents_itself(name):
    loss = loss_class(name)
    assert ">>>" in loss.__doc__, "a printed value"
    for option in fields(loss):
        described = "".join(parent.__doc__ or "" for parent in loss.__mro__ if issubclass(parent, PreferenceLoss))
        assert option.name in described, option.name


_MODULES = [module.name for module in pkgutil.iter_modules(nemo_rpo.losses.__path__, "nemo_rpo.losses.")]


@pytest.mark.parametrize("module", _MODULES)
def test_doctests(module):
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0
