"""The step-0 law: before the first update the policy is its reference, so every margin is 0.

What is left of it is rounding, and two gates hold it: what it comes to in nats a token, and what it does to Δ, the
log-odds of a label. The second matters where the induced link is steep: IPO's has a slope of 2/β, under which the
rounding of FP8 alone could decide a label.

A reference of its own (``model.rpo.reference_from``) is under no such law: how far it is from the start is said, and
only what is no number is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemo_rpo.config.load import print_on_first_rank
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ReferencePolicyError
from nemo_rpo.losses import PairLogprobs
from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
from nemo_rpo.megatron.step.collectives import largest_on_all_ranks, reduce_to_all_ranks
from nemo_rpo.training.origin import starts_at

# Nats a response token. fp32 log-probs computed in batches of another shape differ by 1e-6; bf16 ones by a few 1e-3,
# which partly cancels in a sum over tokens, as the few 1e-2 of FP8 do. Another model is off by tenths.
_TOLERANCE = {"32": 1e-4, "bf16": 1e-2, "fp8": 5e-2}

# Where FP8 of one scale a tensor meets cached log-probs, which other batches gave.
_OF_THE_BATCH = ", or set model.rpo.logprob_precision=fp8_blockwise, whose log-probs do not depend on their batch"


_BEHIND_ITS_BASE = (
    "the policy does not start from model.rpo.previous_iterate, so its first margins run against what that iterate has "
    "learnt, and the EM takes them for evidence: start from the iterate (pretrained_checkpoint.restore_from_path), and "
    "name what is the start now in model.rpo.reference_from"
)


def check_step0(model: MegatronGPTRPOModel, batch: Batch, cfg: RunConfig) -> None:
    """Refuses to start from a reference that is not the policy, or too roughly so; of one that is not meant to be the
    policy says how far it is. ``batch`` holds reference log-probs.

    Under FP8 says first how far its log-probs are from bf16's, token by token.

    Raises:
        ReferencePolicyError: on every rank alike, with the largest difference found. Collectives: the model's forward
            ones and two all-reduces of 8 bytes over the world; under FP8 those of :func:`token_error`.
    """
    rpo = cfg.model.rpo
    if rpo.enabled and model.needs.previous_iterate and not starts_at(cfg, rpo.previous_iterate):
        print_on_first_rank(f"warning: {_BEHIND_ITS_BASE}")
    if "reference" not in model.loss.needs:
        return
    fp8 = sorted(set(rpo.precisions()) - {"bf16"})
    for precision in fp8:
        print_on_first_rank(str(token_error(model, batch, precision)))
    off, shift = (torch.full((1,), -torch.inf, dtype=torch.float64, device=model.device) for _ in range(2))
    for micro_batch, pairs in zip(batch, model.get_pair_batch(batch), strict=False):
        valid = micro_batch["valid"].to(model.device)
        off = _largest(off, _per_token(pairs), valid)
        shift = _largest(shift, _shift(model, pairs) / rpo.link_tau, valid)
    found = largest_on_all_ranks(off)
    if not starts_at(cfg, rpo.reference_from):
        if math.isinf(found):
            raise ReferencePolicyError(f"log-probs under model.rpo.reference_from={rpo.reference_from} are no numbers")
        print_on_first_rank(
            f"the reference is {rpo.reference_from}, not the start: before the first step log-probs differ by up to "
            f"{found:.3g} nats a token"
        )
        return
    allowed = rpo.step0_tolerance or _TOLERANCE["fp8" if fp8 else cfg.trainer.precision]
    if found > allowed:
        raise ReferencePolicyError(
            f"the reference is not the policy's starting point: log-probs differ by up to {found:.3g} nats a token "
            "before the first step, "
            f"{allowed:.3g} are allowed (model.rpo.step0_tolerance); check pretrained_checkpoint and "
            "model.rpo.reference_cache" + _OF_THE_BATCH * (fp8 == ["fp8_tensorwise"] and rpo.reference == "cached")
        )
    found, allowed = largest_on_all_ranks(shift), rpo.step0_link_tolerance
    if found > allowed:
        raise ReferencePolicyError(
            f"rounding alone moves the log-odds of a label by up to {found:.3g} under the loss '{model.loss.name}', "
            f"{allowed:.3g} are allowed (model.rpo.step0_link_tolerance): set model.rpo.logprob_precision=bf16, a live "
            "reference, or a larger β"
        )


def _largest(so_far: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    return torch.maximum(so_far, torch.where(valid, values.nan_to_num(torch.inf), 0.0).max())


def _per_token(pairs: PairLogprobs) -> Tensor:
    """Largest difference from the reference per token, over both responses, float64 ``[pairs]``. Not the difference of
    the two: a wrong reference may be off by the same amount on either side.
    """
    lengths = pairs.chosen_length, pairs.rejected_length
    chosen, rejected = (
        (ours - theirs).abs().double() / tokens
        for ours, theirs, tokens in zip(pairs.policy(), _reference(pairs), lengths, strict=True)
    )
    return torch.maximum(chosen, rejected)


def _shift(model: MegatronGPTRPOModel, pairs: PairLogprobs) -> Tensor:
    """How far Δ is from the Δ of a policy that equals the reference exactly, float64 ``[pairs]``."""
    chosen, rejected = _reference(pairs)
    exact = replace(pairs, policy_chosen=chosen, policy_rejected=rejected)
    return (model.loss.terms(pairs).delta - model.loss.terms(exact).delta).abs().double()


def _reference(pairs: PairLogprobs) -> tuple[Tensor, Tensor]:
    return pairs.reference_chosen, pairs.reference_rejected


@dataclass(frozen=True)
class TokenError:
    """|log p − log p in bf16| of response tokens in ``precision``, in nats: ``mean`` and ``largest``, and the largest
    of a response's sum.
    """

    precision: str
    mean: float
    largest: float
    of_a_sum: float

    def __str__(self) -> str:
        return (
            f"{self.precision} log-probs differ from bf16's by {self.mean:.3g} nats a token on average, "
            f"{self.largest:.3g} at most, and by up to {self.of_a_sum:.3g} in the sum of a response"
        )


def token_error(model: MegatronGPTRPOModel, batch: Batch, precision: str) -> TokenError:
    """The error of the policy's log-probs on ``batch`` in ``precision``; the same on every rank.

    Collectives: the model's forward ones, twice, a reduction of 16 bytes and two all-reduces of 8 bytes.
    """
    with model.evaluating():
        with model.precision.switched(precision):
            found = model.get_logprob_batch(batch)
        with model.precision.switched("bf16"):
            exact = model.get_logprob_batch(batch)
    sums = torch.zeros(2, dtype=torch.float64, device=model.device)
    worst = torch.zeros(2, 1, dtype=torch.float64, device=model.device)
    for rough, plain in zip(found, exact, strict=True):
        off = (rough["tokens"] - plain["tokens"]).abs().double()
        sums += torch.stack((off.sum(), off.new_tensor(off.numel())))
        of_sums = torch.cat([(rough[side] - plain[side]).abs() for side in ("chosen", "rejected")])
        worst = torch.maximum(worst, torch.stack((off.max(), of_sums.max().double())).unsqueeze(1))
    reduce_to_all_ranks(sums)
    total, count = sums.tolist()
    return TokenError(precision, total / count, largest_on_all_ranks(worst[0]), largest_on_all_ranks(worst[1]))
