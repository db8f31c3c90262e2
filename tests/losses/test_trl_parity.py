"""Our losses against the code of TRL's trainers, on the same log-probs.

TRL's DPO losses live inside ``DPOTrainer._compute_loss``, between the forward pass and the metrics. It is called
here on a trainer that was never built, with a model that answers given log-probs; TRL's own lines compute the loss.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from nemo_rpo.losses import PairLogprobs, build_loss

from .cases import random_batch, rows

pytest.importorskip("trl", reason="TRL is not installed; CI compares with it in an environment of its own")

X = random_batch(8, dtype=torch.float32, seed=41)
CPU = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


class GivenLogProbs:
    """HeadOutputs a padded batch [2P, T+1] whose completions have the sequence log-probs of ``x``, token by token."""

    def __init__(self, x: PairLogprobs) -> None:
        lengths = torch.cat([x.chosen_length, x.rejected_length])
        total = torch.cat(x.policy())
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        self.per_token = mask * (total / lengths)[:, None]
        # A prompt of one token stands before every completion.
        self.completion_mask = F.pad(mask.long(), (1, 0))

    def __call__(self, **_: object) -> SimpleNamespace:
        zeros = torch.zeros_like(self.per_token)
        return SimpleNamespace(log_probs=self.per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def trl_dpo(x: PairLogprobs, loss_type: str, **arguments: object) -> torch.Tensor:
    """The loss of a batch by TRL's DPOTrainer."""
    from trl import DPOTrainer

    model = GivenLogProbs(x)
    defaults = {
        "beta": 0.1,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
    }
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=CPU,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
        loss_types=[loss_type],
        loss_weights=[1.0],
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **{**defaults, **arguments},
    )
    mask = model.completion_mask
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": x.reference_chosen,
        "ref_rejected_logps": x.reference_rejected,
    }
    return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)


def each_pair(trl_loss, x: PairLogprobs = X) -> torch.Tensor:
    """TRL averages; one pair at a time gives its loss of each."""
    return torch.stack([trl_loss(rows(x, slice(i, i + 1))) for i in range(len(x))])


@pytest.mark.parametrize(
    ("name", "options", "loss_type", "arguments"),
    [
        ("dpo", {"beta": 0.3}, "sigmoid", {"beta": 0.3}),
        ("dpo", {"average_log_probs": True}, "sigmoid_norm", {}),
        ("hinge", {}, "hinge", {}),
        ("ipo_avg", {"beta": 0.2}, "ipo", {"beta": 0.2}),
        ("rdpo", {"label_smoothing": 0.2}, "robust", {"label_smoothing": 0.2}),
        ("f_dpo", {"divergence": "forward_kl"}, "sigmoid", {"f_divergence_type": "forward_kl"}),
        ("f_dpo", {"divergence": "js"}, "sigmoid", {"f_divergence_type": "js_divergence"}),
        (
            "f_dpo",
            {"divergence": "alpha", "alpha": 0.3},
            "sigmoid",
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        ),
    ],
)
def test_dpo_trainer(name, options, loss_type, arguments):
    expected = each_pair(lambda x: trl_dpo(x, loss_type, **arguments))
    torch.testing.assert_close(build_loss(name, **options)(X), expected, rtol=2e-5, atol=1e-5)


def test_sppo_hard_is_half_of_trls():
    expected = each_pair(lambda x: trl_dpo(x, "sppo_hard"))
    torch.testing.assert_close(2 * build_loss("sppo_hard", beta=0.1)(X), expected, rtol=2e-5, atol=1e-5)


def test_exo_pair_is_reward_aware_with_one_gap_for_all():
    """EXO's divergence from a smoothed label is ``rpo_fwd_kl`` at the gap logit(1 - ε)."""
    expected = each_pair(lambda x: trl_dpo(x, "exo_pair", label_smoothing=0.1))
    gap = torch.full((len(X),), torch.tensor(0.9).logit().item())
    ours = build_loss("rpo_fwd_kl", beta=0.1)(replace(X, pair_columns={"margin": gap}))
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=1e-5)


def trl_cpo(chosen: torch.Tensor, rejected: torch.Tensor, loss_type: str, **arguments: float) -> torch.Tensor:
    from trl.experimental.cpo import CPOTrainer

    defaults = {"alpha": 0.0, "label_smoothing": 0.0, "beta": 0.1, "simpo_gamma": 0.5}
    trainer = SimpleNamespace(accelerator=CPU, loss_type=loss_type, **{**defaults, **arguments})
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]


def test_cpo():
    ours = build_loss("cpo", beta=0.2, cpo_alpha=0.0)(X)
    torch.testing.assert_close(ours, trl_cpo(*X.policy(), "sigmoid", beta=0.2))


def test_simpo():
    """TRL's gamma is γ itself, ours and the authors' is γ/β."""
    ours = build_loss("simpo", beta=2.0, gamma_beta_ratio=0.4)(X)
    torch.testing.assert_close(ours, trl_cpo(*X.mean_policy(), "simpo", beta=2.0, simpo_gamma=0.8))


def test_cdpo_is_label_smoothing():
    """TRL 1.x smooths labels in its CPO trainer alone; the log-ratios take the place of its log-probs."""
    expected = trl_cpo(*X.log_ratios(), "sigmoid", label_smoothing=0.15)
    torch.testing.assert_close(build_loss("cdpo", label_smoothing=0.15)(X), expected)


def test_orpo():
    """TRL returns λ log σ(o_w - o_l), and subtracts it from the NLL."""
    from trl.experimental.orpo import ORPOTrainer

    trainer = SimpleNamespace(accelerator=CPU, beta=0.3)
    expected = -ORPOTrainer.odds_ratio_loss(trainer, *X.mean_policy())[0]
    torch.testing.assert_close(build_loss("orpo", beta=0.3, nll_weight=0.0)(X), expected)
    terms = build_loss("orpo", beta=0.3).terms(X)
    torch.testing.assert_close(build_loss("orpo", beta=0.3)(X), expected - X.mean_policy()[0])
    assert terms.exact


@pytest.mark.parametrize("margin", [None, 3.0])
def test_reward_trainer(margin):
    from trl import RewardTrainer

    chosen, rejected = X.response_columns["score"]
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=CPU,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {"input_ids": torch.zeros(2 * len(X), 1), "attention_mask": torch.ones(2 * len(X), 1)}
    if margin is not None:
        inputs["margin"] = torch.full((len(X),), margin)
    scores = SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
    expected = RewardTrainer.compute_loss(trainer, lambda **_: scores, inputs)
    x = replace(X, pair_columns={"strength": torch.full((len(X),), margin or 0.0)})
    ours = build_loss("bt" if margin is None else "bt_margin")(x)
    torch.testing.assert_close(ours.mean(), expected)


# --- completions judged alone

GOOD = torch.arange(len(X)) % 3 > 0


def judged(x: PairLogprobs, z: float) -> PairLogprobs:
    """The chosen responses of ``x`` by themselves, those that ``GOOD`` says recorded as good."""
    zero = torch.zeros_like(x.policy_chosen)
    sides = [torch.where(side, of, zero) for of in (x.policy_chosen, x.reference_chosen) for side in (GOOD, ~GOOD)]
    lengths = [torch.where(side, x.chosen_length, 0) for side in (GOOD, ~GOOD)]
    point = torch.full_like(zero, z)
    return PairLogprobs(*sides, *lengths, pair_columns={"mismatched_kl": point, "mean_log_ratio": point})


def trl_kto(x: PairLogprobs, loss_type: str, kl: tuple[torch.Tensor, torch.Tensor], **weights: float) -> torch.Tensor:
    """The loss of a batch by TRL's KTOTrainer; ``kl``: log-probs of mismatched completions, policy and reference."""
    from trl import KTOTrainer

    model = GivenLogProbs(x)
    half = len(x)
    mask = model.completion_mask[:half]

    def answer(**_: object) -> SimpleNamespace:
        return SimpleNamespace(**{name: value[:half] for name, value in vars(model()).items()})

    answer.training = False
    trainer = SimpleNamespace(
        model=answer, accelerator=CPU, aux_loss_enabled=False, beta=0.3, loss_type=loss_type, _total_train_tokens=0,
        calculate_KL=loss_type == "kto", precompute_ref_logps=True, _tp_size=1,
        _compute_kl_logps=lambda *_: kl[0], _metrics={"eval": defaultdict(list)},
        **{"desirable_weight": 1.0, "undesirable_weight": 1.0, **weights},
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": GOOD,
        "ref_logps": x.reference_chosen,
        "ref_KL_logps": kl[1],
    }
    return KTOTrainer._compute_loss(trainer, answer, inputs, return_outputs=False)


@pytest.mark.parametrize("weights", [{}, {"desirable_weight": 1.3, "undesirable_weight": 0.7}])
@pytest.mark.parametrize("drift", [2.5, -1.0])
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_kto_trainer(name, drift, weights):
    """A negative estimate of the divergence is 0 in both."""
    reference = torch.linspace(-50, -20, len(X))
    policy = reference + drift + torch.linspace(-0.5, 0.5, len(X))
    expected = trl_kto(X, name, (policy, reference), **weights)
    ours = build_loss(name, beta=0.3, **weights)(judged(X, max((policy - reference).mean().item(), 0.0)))
    torch.testing.assert_close(ours.mean(), expected, rtol=1e-6, atol=1e-6)


def test_bco_trainer():
    """TRL's δ is the running mean of β a(y): that of the first batch is the batch's mean, as ours is."""
    bco = pytest.importorskip("trl.experimental.bco.bco_trainer", reason="this release of TRL has no BCOTrainer")
    beta = 0.3
    trainer = SimpleNamespace(
        beta=beta, match_underlying_distribution=False,
        running=bco.RunningMoments(SimpleNamespace(use_distributed=False)),
    )  # fmt: skip
    policy, reference = X.policy_chosen, X.reference_chosen
    expected, *_, delta = bco.BCOTrainer.bco_loss(
        trainer, policy[GOOD], policy[~GOOD], reference[GOOD], reference[~GOOD], None, None
    )
    z = (policy - reference).mean().item()
    assert delta.item() == pytest.approx(beta * z, abs=1e-6)
    ours = build_loss("bco", beta=beta)(judged(X, z))
    torch.testing.assert_close(torch.cat((ours[GOOD], ours[~GOOD])), expected, rtol=1e-6, atol=1e-6)
