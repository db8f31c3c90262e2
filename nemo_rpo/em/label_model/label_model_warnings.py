"""What a fit has to warn of, in plain words. Pure functions; measured by ``benchmarks/label_model.py``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nemo_rpo.em.guards import Warned
from nemo_rpo.em.label_model.choose import OrderShown
from nemo_rpo.em.label_model.coded_votes import VoteTable
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.member import Member
from nemo_rpo.em.label_model.shared_errors.dependence import Dependence

# Annotators named in one sentence.
_NAMED = 8
# Votes tell nothing of an annotator whose skill's standard error is this many times as wide as what is expected of
# anybody.
_UNHEARD = 2.0


def heard(member: Member) -> Tensor:
    """Of whom votes tell anything, bool [K]: where nobody else votes on an annotator's pairs, they do not."""
    expected = member.population.expected_variance[0] + member.population.mean_variance[0]
    return member.errors[:, 0] < _UNHEARD * expected.sqrt()


def nobody_heard(table: VoteTable, member: Member) -> Warned | None:
    """Where votes tell nothing of anybody."""
    if heard(member)[table.annotator].any():
        return None
    return Warned(
        "nobody_heard",
        "votes tell nothing of any annotator: too few of their labels are on pairs that others labelled too, so "
        "reliabilities are what is expected of anybody. Have pairs labelled twice, or give some their gold label; in "
        "training the policy's margins tell more",
    )


def worse_than_a_coin(
    table: VoteTable, member: Member, anchors: int, settings: LabelModelSettings
) -> tuple[float, Warned] | None:
    """Probability that the world is the right way up, and the warning, where annotators below ½ give many labels.

    All truths and all skills turned round fit the votes as well; only what is expected of crowds' mean skill μ tells
    the two apart. Its log-odds under N(m, s²) are 2 m μ / s², here with s wider than the settings' own.

    ``annotators_below_half`` states a fact: some annotators are below ½ by 1.64 standard errors or more.
    ``upside_down`` doubts the rest as well. Both are rare for honest crowds, by measurement. Annotators of whom votes
    tell nothing (:func:`heard`) count as above ½.
    """
    if anchors >= settings.min_anchors:
        return None
    skill, error = member.theta[:, 0], member.errors[:, 0]
    voted = table.per_annotator(table.counted) > 0
    surely = voted & (skill + 1.64 * error < 0)
    likely = (torch.special.ndtr(-skill / error) * heard(member))[table.annotator].mean().item()
    share = surely[table.annotator].double().mean().item()
    doubted = likely >= settings.upside_down_share
    if share < settings.max_below_half and not doubted:
        return None
    mean = max(0.0, member.population.mean[0].item())
    spread = settings.upside_down_spread if doubted else settings.below_half_spread
    probability = 1 / (1 + math.exp(-2 * settings.skill_mean * mean / spread**2))
    who = torch.nonzero(surely).flatten().tolist()
    named = ", ".join(map(str, who[:_NAMED])) + (", …" if len(who) > _NAMED else "")
    if not doubted:
        return probability, Warned(
            "annotators_below_half",
            f"annotators {named} gave {share:.0%} of the labels and come out below one half, beyond chance; their "
            "votes count against what they say. If they are the ones who are right, everything is turned round: a few "
            "gold labels tell",
        )
    return probability, Warned(
        "upside_down",
        f"annotators below one half gave {likely:.0%} of the labels (beyond chance: {named or 'none'}); everything "
        "turned round fits as well, and votes alone cannot tell which camp is right. Posteriors are drawn to one half; "
        "give some pairs their gold label",
    )


def order_not_random(order: OrderShown) -> Warned:
    """Of an order that always, or mostly, put one side first."""
    return Warned(
        "order_not_random",
        f"the chosen response was shown first in {order.first:.0%} of the pairs: the order was not random, so the mean "
        "leaning to a slot cannot be told from the truth. It is held at 0, and the share of truths is fitted instead",
    )


def errors_together(
    dependence: Dependence, groups: list[list[int]], instead: str, accuracy: tuple[float, float, float]
) -> Warned | None:
    """Of errors that hang together; ``instead``: what is reported in place of the label model, empty if it is kept."""
    if not dependence.found:
        return None
    observed, expected = dependence.observed, dependence.expected
    measured = (
        f"agreement of annotators spreads {observed.spread:.2f} (independent errors: {expected.spread:.2f}), two "
        f"of them agree by up to {observed.largest:.1f} standard errors too much ({expected.largest:.1f}), the "
        f"errors of a group add up to {observed.block:.1f} ({expected.block:.1f}), and on one pair errors "
        f"correlate by {observed.correlation:.3f} ({expected.correlation:.3f})"
    )
    named = "; families: " + ", ".join(str(group) for group in groups[:3]) if groups else ""
    if not dependence.outweighs:
        discounted = "evidence is discounted and intervals are widened"
        return Warned("dependent_errors", f"{measured}: annotators do not err independently; {discounted}{named}")
    kept = "on held-out anchors the label model holds"
    if instead == "majority":
        kept = (
            f"the majority is reported instead, right on about {accuracy[0]:.0%} of the pairs ({accuracy[1]:.0%} to "
            f"{accuracy[2]:.0%}); its posteriors are not calibrated: they are moved half of the way to one half"
        )
    elif instead:
        kept = f"on held-out anchors {instead} holds"
    return Warned("shared_errors", f"{measured}: a group that errs together may pass for the truth; {kept}{named}")
