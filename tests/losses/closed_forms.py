"""The equations once more, in plain Python numbers and nothing of the package: both directions of every loss.

Each function takes one row (a namespace of floats) and returns (L(w≻l), L(l≻w)), the second written out from the rule
by which that loss turns a pair round, so that a wrong rule cannot agree with itself.
"""

from __future__ import annotations

import math
from types import SimpleNamespace as Row


def softplus(x: float) -> float:
    """-log σ(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return math.exp(-softplus(-x))


def logistic(u: float) -> tuple[float, float]:
    return softplus(-u), softplus(u)


def h(r: Row, average: bool = False) -> float:
    chosen, rejected = r.policy_w - r.reference_w, r.policy_l - r.reference_l
    return chosen / r.length_w - rejected / r.length_l if average else chosen - rejected


def soft(u: float, q: float) -> tuple[float, float]:
    return q * softplus(-u) + (1 - q) * softplus(u), q * softplus(u) + (1 - q) * softplus(-u)


def dpo(r: Row, beta=0.1, average_log_probs=False):
    return logistic(beta * h(r, average_log_probs))


def f_dpo(r: Row, beta=0.1, divergence="reverse_kl", alpha=0.5):
    slope = {
        "reverse_kl": lambda a: a,
        "forward_kl": lambda a: 1 - math.exp(-a),
        "js": lambda a: math.log(2 * math.exp(a) / (1 + math.exp(a))),
        "alpha": lambda a: (1 - math.exp(-alpha * a)) / alpha,
    }[divergence]
    return logistic(beta * (slope(r.policy_w - r.reference_w) - slope(r.policy_l - r.reference_l)))


def ipo(r: Row, beta=0.1, average_log_probs=False):
    difference, target = h(r, average_log_probs), 1 / (2 * beta)
    return (difference - target) ** 2, (-difference - target) ** 2


def ipo_avg(r: Row, beta=0.1):
    return ipo(r, beta, True)


def simpo(r: Row, beta=2.5, gamma_beta_ratio=0.55):
    s, gamma = beta * (r.policy_w / r.length_w - r.policy_l / r.length_l), beta * gamma_beta_ratio
    return softplus(gamma - s), softplus(gamma + s)


def cpo(r: Row, beta=0.1, cpo_alpha=1.0, nll="mean", link_terms="preference_only"):
    wl, lw = logistic(beta * (r.policy_w - r.policy_l))
    if nll == "mean":
        return wl - cpo_alpha * r.policy_w / r.length_w, lw - cpo_alpha * r.policy_l / r.length_l
    return wl - cpo_alpha * r.policy_w, lw - cpo_alpha * r.policy_l


def _odds(r: Row):
    p_w, p_l = math.exp(r.policy_w / r.length_w), math.exp(r.policy_l / r.length_l)
    return p_w, p_l, math.log(p_w / (1 - p_w)), math.log(p_l / (1 - p_l))


def orpo(r: Row, beta=0.1, nll_weight=1.0, link_terms="preference_only"):
    p_w, p_l, odds_w, odds_l = _odds(r)
    wl, lw = logistic(odds_w - odds_l)
    return beta * wl - nll_weight * math.log(p_w), beta * lw - nll_weight * math.log(p_l)


def asft(r: Row, beta=0.1, nll_weight=1.0):
    p_w, p_l, _, _ = _odds(r)
    wl = -beta * (math.log(p_w) + math.log(1 - p_l)) - nll_weight * math.log(p_w)
    lw = -beta * (math.log(p_l) + math.log(1 - p_w)) - nll_weight * math.log(p_l)
    return wl, lw


def hinge(r: Row, beta=0.1):
    return max(0.0, 1 - beta * h(r)), max(0.0, 1 + beta * h(r))


def tdpo1(r: Row, beta=0.1):
    return logistic(beta * (h(r) - r.kl_l + r.kl_w))


def tdpo2(r: Row, beta=0.1, alpha=0.5):
    return logistic(beta * (h(r) - alpha * (r.kl_l - r.kl_w)))


def dmpo(r: Row, beta=0.1, gamma=0.7):
    def value(ratios, turns):
        total = 0.0
        for j in range(turns):
            phi = (turns - j) / turns if gamma == 1 else gamma**j * (1 - gamma ** (turns - j)) / (1 - gamma**turns)
            total += phi * ratios[j]
        return total

    return logistic(beta * (value(r.turn_log_ratios_w, r.turns_w) - value(r.turn_log_ratios_l, r.turns_l)))


def todo(r: Row, beta=0.01, theta=-0.5):
    u = beta * h(r)
    if r.tie:
        tie = math.expm1(-2 * theta) / ((1 + math.exp(-theta + u)) * (1 + math.exp(-theta - u)))
        return -math.log(tie), -math.log(tie)
    return softplus(-u - theta), softplus(u - theta)


def genrm(r: Row, beta=1.0):
    return soft(beta * (r.policy_w - r.policy_l), r.win_rate_chosen)


def mmpo(r: Row, beta=0.01, gamma=2.2):
    return soft(beta * h(r), sigmoid(gamma * r.margin))


def _two_targets(a_w, a_l, t_w, t_l):
    return ((a_w - t_w) ** 2 + (a_l - t_l) ** 2) / 2, ((a_l - t_w) ** 2 + (a_w - t_l) ** 2) / 2


def sppo_hard(r: Row, beta=0.001):
    return _two_targets(r.policy_w - r.reference_w, r.policy_l - r.reference_l, 0.5 / beta, -0.5 / beta)


def sppo(r: Row, beta=0.001):
    targets = (r.win_rate_chosen - 0.5) / beta, (r.win_rate_rejected - 0.5) / beta
    return _two_targets(r.policy_w - r.reference_w, r.policy_l - r.reference_l, *targets)


def gpo(r: Row, beta=0.001):
    targets = r.preference_score_chosen / beta, r.preference_score_rejected / beta
    return _two_targets(r.policy_w - r.base_logps_w, r.policy_l - r.base_logps_l, *targets)


def inpo(r: Row, beta=0.0075, tau=0.0025):
    d, d_ref, d_t = r.policy_w - r.policy_l, r.reference_w - r.reference_l, r.base_logps_w - r.base_logps_l
    difference, target = d - tau / beta * d_ref - (beta - tau) / beta * d_t, 1 / (2 * beta)
    return (difference - target) ** 2, (-difference - target) ** 2


def onpo(r: Row, step_size=0.5):
    g = (r.policy_w - r.policy_l) - (r.base_logps_w - r.base_logps_l)
    return (g - step_size / 2) ** 2, (-g - step_size / 2) ** 2


def egpo(r: Row, beta=0.1):
    target = (r.win_rate_chosen - r.win_rate_rejected) / beta
    return (h(r) - target) ** 2, (-h(r) - target) ** 2


def _base_margin(r: Row, beta):
    return beta * ((r.policy_w - r.policy_l) - (r.base_logps_w - r.base_logps_l))


def dno(r: Row, beta=0.1):
    return soft(_base_margin(r, beta), sigmoid(r.margin))


def dno_prct(r: Row, beta=0.1):
    return logistic(_base_margin(r, beta))


def rpo_sq(r: Row, beta=0.2, gt_reward_scale=1.0):
    u, g = beta * h(r), gt_reward_scale * r.margin
    return (u - g) ** 2, (-u - g) ** 2


def _kl(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def rpo_bwd_kl(r: Row, beta=0.2, gt_reward_scale=1.0):
    u, q = beta * h(r), sigmoid(gt_reward_scale * r.margin)
    return _kl(q, sigmoid(u)), _kl(q, sigmoid(-u))


def rpo_fwd_kl(r: Row, beta=0.2, gt_reward_scale=1.0):
    u, q = beta * h(r), sigmoid(gt_reward_scale * r.margin)
    return _kl(sigmoid(u), q), _kl(sigmoid(-u), q)


def bt(r: Row):
    return logistic(r.score_w - r.score_l)


def bt_margin(r: Row):
    difference = r.score_w - r.score_l
    return softplus(r.strength - difference), softplus(r.strength + difference)


def bt_scaled(r: Row, link="unscaled"):
    wl, lw = bt(r)
    return r.strength * wl, r.strength * lw


def pal(r: Row, groups=2):
    return logistic(sum(w * (a - b) for w, a, b in zip(r.group_weight, r.scores_w, r.scores_l, strict=True)))


def gpm(r: Row, tau=0.1, normalize=True, gated=False):
    v, u = r.embedding_w, r.embedding_l
    blocks = [v[2 * b] * u[2 * b + 1] - v[2 * b + 1] * u[2 * b] for b in range(len(v) // 2)]
    if gated:
        blocks = [gate * block for gate, block in zip(r.gate, blocks, strict=True)]
    length = math.hypot(*v) * math.hypot(*u) if normalize else 1.0
    return logistic(sum(blocks) / length / tau)


def _strengths(r: Row) -> tuple[float, float]:
    return r.coefficients[r.player_w], r.coefficients[r.player_l]


def p2l_bt(r: Row):
    won, lost = _strengths(r)
    up, down = logistic(won - lost)
    return ((up + down) / 2,) * 2 if r.tie else (up, down)


def p2l_rao_kupper(r: Row):
    won, lost = _strengths(r)
    eta = max(0.02, 10 * math.log1p(math.exp((r.tie_width - 22.5) / 10)))
    up, down = sigmoid(won - lost - eta), sigmoid(lost - won - eta)
    return (-math.log(1 - up - down),) * 2 if r.tie else (-math.log(up), -math.log(down))


def p2l_bag(r: Row):
    won, lost = (math.exp(s) for s in _strengths(r))
    nu = 1 + math.exp(r.tie_width)
    up, down, bad = won / (won + nu * lost + 1), lost / (lost + nu * won + 1), 1 / (1 + won + lost)
    if r.tie:
        return (-math.log(bad if r.both_bad else 1 - up - down - bad),) * 2
    return -math.log(up), -math.log(down)


def plackett_luce(r: Row, beta=0.1, scores="log_ratio"):
    return bt(r) if scores == "reward" else dpo(r, beta)


def pro(r: Row, sft_weight=0.05):
    wl, lw = logistic(r.margin * (r.policy_w / r.length_w - r.policy_l / r.length_l))
    return wl - sft_weight * r.policy_w, lw - sft_weight * r.policy_l


def brain(r: Row, gamma=1.0):
    u = _base_margin(r, 1.0)
    drift = (r.reference_w - r.base_logps_w) - (r.reference_l - r.base_logps_l)
    right, wrong = sigmoid(drift + r.margin / gamma), sigmoid(-drift + r.margin / gamma)
    return soft(u, right)[0], soft(-u, wrong)[0]


def cdpo(r: Row, beta=0.1, label_smoothing=0.1):
    return soft(beta * h(r), 1 - label_smoothing)


def rdpo(r: Row, beta=0.1, label_smoothing=0.1):
    wl, lw = logistic(beta * h(r))
    keep, flip = 1 - label_smoothing, label_smoothing
    return (keep * wl - flip * lw) / (keep - flip), (keep * lw - flip * wl) / (keep - flip)


def forward_corrected(r: Row, beta=0.1, label_smoothing=0.1):
    p = sigmoid(beta * h(r))
    recorded = (1 - label_smoothing) * p + label_smoothing * (1 - p)
    return -math.log(recorded), -math.log(1 - recorded)


def udpo(r: Row, beta=0.1, a=1 / 9):
    p = sigmoid(beta * h(r))
    return -math.log((p + a * (1 - p)) / (1 + a)), -math.log((1 - p + a * p) / (1 + a))


def rgpo(r: Row, beta=0.1, weight=1.0):
    inferred = 1 if r.consensus > 0 else -1
    sure = weight * abs(math.tanh(r.consensus))
    return sure * softplus(-inferred * beta * h(r)), sure * softplus(inferred * beta * h(r))


def fa_dpo(r: Row, beta=0.1, rate="features", intercept=-2.1972245773362196, length=0.0, perplexity=0.0):
    gap = abs(r.reference_w / r.length_w - r.reference_l / r.length_l)
    flip = sigmoid(intercept + length * abs(math.log(r.length_w / r.length_l)) + perplexity * gap)
    flip = flip if rate == "features" else r.flip_rate
    p = sigmoid(beta * h(r))
    return -math.log((1 - flip) * p + flip * (1 - p)), -math.log(flip * p + (1 - flip) * (1 - p))


def holder_dpo(r: Row, beta=0.1, gamma=2.0):
    def loss(p):
        return -(1 + gamma) * p**gamma + gamma * p ** (1 + gamma)

    return loss(sigmoid(beta * h(r))), loss(sigmoid(-beta * h(r)))


def ropo(r: Row, beta=0.1, alpha=14.0):
    u, scale = beta * h(r), 4 * alpha / (1 + alpha) ** 2
    return scale * (softplus(-u) + alpha * sigmoid(-u)), scale * (softplus(u) + alpha * sigmoid(u))


def dr_dpo(r: Row, beta=0.1, beta_prime=1.0):
    return dpo(r, beta)


# Of real pairs, which have both sides: the reference point then has no side to stand on. tests/losses/test_unpaired.py
# has the losses of completions judged alone.


def kto(r: Row, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    u = beta * h(r)
    return desirable_weight * sigmoid(-u), desirable_weight * sigmoid(u)


apo_zero_unpaired = kto


def bco(r: Row, beta=0.1):
    return logistic(beta * h(r))
