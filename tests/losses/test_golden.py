"""The numeric cases of ``golden/losses.json``: both directions, link, log Z, posterior, and both robust objectives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from nemo_rpo.em.objective import robust_loss
from nemo_rpo.losses import PairLogprobs, build_loss

_BASE = {"base_logps": (-43.0, -50.5)}
_KL = {"kl": (3.2, 4.7)}
_SCORE = {"score": (2.0, 0.3)}
_PADDED = {"turn_log_ratios": ([1.5, 0.5, 0.25], [-0.5, -1.0, 0.0]), "turns": (3, 2)}
_VECTORS = {"embedding": ([1.0, 2.0, 0.5, -1.0], [0.3, -0.4, 2.0, 1.0])}

# case -> (loss, options, response columns, pair columns)
_CASES = {
    "dpo": ("dpo", {"beta": 0.1}, {}, {}),
    "cdpo": ("cdpo", {"beta": 0.1, "label_smoothing": 0.1}, {}, {}),
    "rdpo": ("rdpo", {"beta": 0.1, "label_smoothing": 0.1}, {}, {}),
    "hinge": ("hinge", {"beta": 0.1}, {}, {}),
    "ipo_sum": ("ipo", {"beta": 0.1}, {}, {}),
    "ipo_avg": ("ipo_avg", {"beta": 0.1}, {}, {}),
    "fdpo_fkl": ("f_dpo", {"beta": 0.1, "divergence": "forward_kl"}, {}, {}),
    "fdpo_js": ("f_dpo", {"beta": 0.1, "divergence": "js"}, {}, {}),
    "fdpo_alpha_paper0.3": ("f_dpo", {"beta": 0.1, "divergence": "alpha", "alpha": 0.3}, {}, {}),
    "simpo": ("simpo", {"beta": 2.5, "gamma_beta_ratio": 1.375 / 2.5}, {}, {}),
    "cpo_pref_only": ("cpo", {"beta": 0.1, "cpo_alpha": 0.0}, {}, {}),
    "cpo_nll_mean": ("cpo", {"beta": 0.1, "nll": "mean", "link_terms": "all"}, {}, {}),
    "cpo_nll_sum": ("cpo", {"beta": 0.1, "nll": "sum", "link_terms": "all"}, {}, {}),
    "orpo_align": ("orpo", {"beta": 1.0, "nll_weight": 0.0}, {}, {}),
    "asft_align": ("asft", {"beta": 1.0, "nll_weight": 0.0}, {}, {}),
    "asft_full": ("asft", {"beta": 0.1, "link_terms": "all"}, {}, {}),
    "tdpo1": ("tdpo1", {"beta": 0.1}, _KL, {}),
    "tdpo2": ("tdpo2", {"beta": 0.1, "alpha": 0.5}, _KL, {}),
    "todo_pref": ("todo", {"beta": 0.1, "theta": -0.5}, {}, {"tie": 0}),
    "todo_tie": ("todo", {"beta": 0.1, "theta": -0.5}, {}, {"tie": 1}),
    "mmpo_slotswap": ("mmpo", {"beta": 0.1, "gamma": 1.1}, {}, {"margin": 2.0}),
    "sppo_winrate_slotswap": ("sppo", {"beta": 0.001}, {}, {"win_rate_chosen": 0.8, "win_rate_rejected": 0.3}),
    "sppo_hard_authors_half": ("sppo_hard", {"beta": 0.1}, {}, {}),
    "gpo_half_slotswap": (
        "gpo",
        {"beta": 0.001},
        {"base_logps": (-44.25, -50.0)},
        {"preference_score_chosen": 1.2, "preference_score_rejected": -0.4},
    ),
    "inpo": ("inpo", {"beta": 0.0075, "tau": 0.0025}, _BASE, {}),
    "onpo": ("onpo", {"step_size": 1.0}, _BASE, {}),
    "dno_soft_slotswap": ("dno", {"beta": 0.1}, _BASE, {"margin": 0.7 - 0.2}),
    "dno_prct": ("dno_prct", {"beta": 0.1}, _BASE, {}),
    "egpo_slotswap": ("egpo", {"beta": 0.1}, {}, {"win_rate_chosen": 0.7, "win_rate_rejected": 0.2}),
    "dmpo": ("dmpo", {"beta": 0.1, "gamma": 0.7}, _PADDED, {}),
    "rm_bt": ("bt", {}, _SCORE, {}),
    "rm_scaled_bt": ("bt_scaled", {"link": "scaled"}, _SCORE, {"strength": 3}),
    "rm_margin_bt": ("bt_margin", {}, _SCORE, {"strength": 3}),
    "rm_gpm_tau.1": ("gpm", {"tau": 0.1, "normalize": False}, _VECTORS, {}),
}
# TRL's form is the authors' without the ½; it has no name of its own here.
_DOUBLED = {"sppo_hard_trl": "sppo_hard_authors_half"}


@pytest.fixture(scope="session")
def golden() -> dict:
    root = Path(__file__).resolve().parents[3] / "shared" / "golden"
    path = Path(os.environ.get("NEMO_RPO_GOLDEN") or root) / "losses.json"
    if not path.is_file():
        pytest.skip(f"{path} does not exist; set NEMO_RPO_GOLDEN to the folder of losses.json")
    return json.loads(path.read_text())


def _batch(golden: dict, response_columns: dict, pair_columns: dict) -> PairLogprobs:
    def tensor(value: float | list) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64)

    point = golden["inputs"]
    return PairLogprobs(
        *(tensor(point[key]) for key in ("logpi_w", "logpi_l", "logref_w", "logref_l", "len_w", "len_l")),
        {name: (tensor(chosen), tensor(rejected)) for name, (chosen, rejected) in response_columns.items()},
        {name: tensor(value) for name, value in pair_columns.items()},
    )


@pytest.mark.parametrize("case", _CASES)
def test_case(golden, case):
    name, options, response_columns, pair_columns = _CASES[case]
    expected = golden["cases"][case]
    loss, x = build_loss(name, **options), _batch(golden, response_columns, pair_columns)
    terms = loss.terms(x)
    eta = torch.tensor([golden["inputs"]["eta"]], dtype=torch.float64)
    w = torch.sigmoid(terms.delta + eta.logit())
    got = {
        "L_wl": terms.chosen,
        "L_lw": terms.rejected,
        "D": terms.delta,
        "logZ": terms.log_z(),
        "p": terms.delta.sigmoid(),
        "w_eta09": w,
        "weighted": robust_loss(terms, w, "weighted"),
        "eq5": robust_loss(terms, w, "induced"),
    }
    assert terms.exact == expected["exact"]
    torch.testing.assert_close(loss(x), terms.chosen, rtol=1e-12, atol=1e-12)
    for field, value in got.items():
        assert value.item() == pytest.approx(expected[field], rel=1e-9, abs=1e-12), field


@pytest.mark.parametrize("case", _DOUBLED)
def test_doubled_case(golden, case):
    name, options, *columns = _CASES[_DOUBLED[case]]
    terms = build_loss(name, **options).terms(_batch(golden, *columns))
    expected = golden["cases"][case]
    for field, value in {"L_wl": terms.chosen, "L_lw": terms.rejected, "D": terms.delta}.items():
        assert 2 * value.item() == pytest.approx(expected[field], rel=1e-12), field


def test_every_case_is_met(golden):
    assert set(golden["cases"]) == set(_CASES) | set(_DOUBLED)
