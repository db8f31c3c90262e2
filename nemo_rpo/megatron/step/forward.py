"""One micro-batch through the model: tokens in, log-probs of both responses out, and the pieces of the loss that follow
from them.

Padded, chosen and rejected of a micro-batch run as one batch of 2·pairs sequences, chosen first, so a pipeline stage
receives ``[S, 2·pairs, h]``; packed, they run end to end as one row, and it receives ``[S, 1, h]``. Of rankings of up
to K responses K·rankings sequences run, the best ones first, and every pair of a ranking is made from their log-probs.

Shapes: m responses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_rpo.data.batches.padded import side_names
from nemo_rpo.data.rankings import responses_of
from nemo_rpo.em import Votes
from nemo_rpo.losses import COLUMNS, PairLogprobs
from nemo_rpo.losses.pair import Two
from nemo_rpo.megatron.batch.context_parallel import context_group, positions_of
from nemo_rpo.megatron.batch.head_outputs import HeadOutputs, HeadRequest
from nemo_rpo.megatron.batch.loss_inputs import REFERENCE_POINTS
from nemo_rpo.megatron.batch.responses import ResponseTokens
from nemo_rpo.megatron.batch.segments import Segments
from nemo_rpo.megatron.batch.transfer import Parcel

MicroBatch = dict[str, Tensor]
Figures = dict[str, Two]  # of chosen and rejected
REFERENCE_KEYS = ("ref_policy_log_probs_chosen", "ref_policy_log_probs_rejected")
# [pairs, T] of each turn of the assistant, and [n, h] of the n scored tokens; where the loss compares that finely.
REFERENCE_TURN_KEYS = ("ref_policy_turn_log_probs_chosen", "ref_policy_turn_log_probs_rejected")
REFERENCE_HIDDEN = "ref_policy_hidden_states"
PREVIOUS_KEYS = ("previous_policy_log_probs_chosen", "previous_policy_log_probs_rejected")


@dataclass(frozen=True)
class ModelInput:
    """What the model sees of a micro-batch: ``tokens`` and ``position_ids`` int64 ``[b, S]``, what it scores, of a pack
    its segments, and of rankings which two of the responses each pair compares, int64 ``[2, pairs]``; of completions
    judged alone too, −1 being the absent side. Under context parallelism this rank's positions of each.
    """

    tokens: Tensor
    position_ids: Tensor
    responses: ResponseTokens
    segments: Segments | None = None
    compared: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> ModelInput:
        """The same with ``function`` of each tensor."""
        compared = None if self.compared is None else function(self.compared)
        tokens, positions = function(self.tokens), function(self.position_ids)
        return ModelInput(tokens, positions, self.responses.map(function), self.segments, compared)

    def two(self, of_responses: Tensor) -> Two:
        """What is known of each response ``[m, …]`` as that of chosen and rejected, ``[pairs, …]`` each."""
        if self.compared is None:  # all chosen ones, then all rejected
            chosen, rejected = of_responses.chunk(2)
            return chosen, rejected
        chosen, rejected = self.compared
        # An absent side has index −1: of it 0 is known.
        known = torch.cat((of_responses, of_responses.new_zeros(1, *of_responses.shape[1:])))
        return known[chosen], known[rejected]


def input_shape(batch: MicroBatch) -> tuple[int, int]:
    """b and S of the micro-batch as the model sees it: a pack is one row, pairs are two rows each, rankings K, and
    completions judged alone one.
    """
    if "segments" in batch:
        return 1, batch["tokens"].shape[1]
    sides = _sides(batch)
    rankings, length = batch[sides[0]].shape
    return len(sides) * rankings, length


def max_responses(batch: MicroBatch) -> int:
    """K: 2 of pairs."""
    return responses_of(pairs_per_ranking(batch))


def _sides(batch: MicroBatch) -> list[str]:
    """The names of the padded rows, all of a name being as many."""
    return ["completion"] if "completion" in batch else side_names(max_responses(batch))


def pairs_per_ranking(batch: MicroBatch) -> int:
    """Places that each ranking of the micro-batch has for its pairs: 1 of pairs by themselves."""
    return len(batch["pair_index"]) // len(batch["ranking_size"]) if "ranking_size" in batch else 1


def on_device(batch: MicroBatch, device: torch.device) -> tuple[ModelInput, MicroBatch]:
    """A micro-batch of the CPU as the model and as the loss sees it, on ``device``, to which each tensor is copied once
    (:class:`~nemo_rpo.megatron.batch.transfer.Parcel`).
    """
    x, columns = model_input(batch), loss_columns(batch)
    parcel = Parcel(device)
    x.map(parcel.add)
    for column in columns.values():
        parcel.add(column)
    sent = parcel.send()
    return x.map(sent), {key: sent(column) for key, column in columns.items()}


def columns_on_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """:func:`loss_columns` on ``device``."""
    parcel, columns = Parcel(device), loss_columns(batch)
    for column in columns.values():
        parcel.add(column)
    sent = parcel.send()
    return {key: sent(column) for key, column in columns.items()}


_OF_A_PACK = ("tokens", "position_ids", "segments", "response_index", "response_tokens", "response_ends")
_FOR_THE_MODEL = {*_OF_A_PACK, "response_lengths", "turn_lengths", "compared"}


def loss_columns(batch: MicroBatch) -> MicroBatch:
    """What the loss, the EM and the metrics read of a micro-batch: all but what :func:`model_input` is made from."""
    if "segments" in batch:
        return {key: value for key, value in batch.items() if key not in _FOR_THE_MODEL}
    sides = _sides(batch)
    tokens = _FOR_THE_MODEL.union(sides, (f"{side}_labels" for side in sides))
    return {key: value for key, value in batch.items() if key not in tokens}


def model_input(batch: MicroBatch) -> ModelInput:
    """What the model sees of a micro-batch on the CPU, padded or packed; on the CPU."""
    turn_lengths, compared = batch.get("turn_lengths"), batch.get("compared")
    if "segments" in batch:
        tokens, positions, segments = batch["tokens"], batch["position_ids"], Segments.of(batch["segments"])
        responses = ResponseTokens.of_pack(batch, turn_lengths)
    else:
        sides, segments = _sides(batch), None
        tokens = torch.cat([batch[side] for side in sides])
        positions = batch["position_ids"].unsqueeze(0).expand(tokens.shape[0], -1)
        labels = torch.cat([batch[f"{side}_labels"] for side in sides])
        responses = ResponseTokens.of_labels(labels, turn_lengths)
    if (group := context_group()) is not None:
        (rows, length), rank, ranks = tokens.shape, group.rank(), group.size()
        here = positions_of(rank, ranks, length) if segments is None else segments.places(ranks)[rank]
        tokens, positions, responses = tokens[:, here], positions[:, here], responses.on_positions(here, length, rows)
    return ModelInput(tokens, positions, responses, segments, compared)


def run_model(model: torch.nn.Module, x: ModelInput, request: HeadRequest) -> Tensor | HeadOutputs:
    """The stage's output: hidden states ``[S, b, h]``, or the head outputs of the response tokens on the last stage."""
    return model(
        input_ids=x.tokens,
        position_ids=x.position_ids,
        responses=x.responses,
        segments=x.segments,
        request=request,
    )


def response_figures(outputs: HeadOutputs, x: ModelInput, by_turn: bool = False) -> Figures:
    """The head outputs by chosen and rejected: ``logps`` and ``kl`` summed over tokens, fp32 ``[pairs]``, and the
    reward head's outputs.

    ``by_turn`` adds ``turn_logps``, summed over each turn, fp32 ``[pairs, T]``, and ``turns``, their number.
    """
    per_token = {name: x.responses.sums(outputs[name]) for name in ("logps", "kl") if name in outputs}
    per_response = {name: answer for name, answer in outputs.items() if name in COLUMNS and name not in per_token}
    figures = {name: x.two(of_responses) for name, of_responses in (per_token | per_response).items()}
    if by_turn:
        figures["turn_logps"] = x.two(x.responses.turn_sums(outputs["logps"]))
        figures["turns"] = x.two(x.responses.turns())
    return figures


def pair_logprobs(batch: MicroBatch, figures: Figures, default_margin: float | None) -> PairLogprobs:
    """What a loss sees of the micro-batch: log-probs, lengths, what else was asked of the model, and every side column
    that the data carries.

    If no previous iterate was run, the reference stands in for it.
    ``margin`` is the data's, else the difference of its rewards, else ``default_margin`` (NeMo-Aligner's default
    rewards), else absent, and a loss that needs it says so.
    """
    reference = [batch.get(key) for key in REFERENCE_KEYS]
    previous = tuple(batch.get(key, of) for key, of in zip(PREVIOUS_KEYS, reference, strict=True))
    columns, of_prompts = {}, {}
    for name in figures.keys() & COLUMNS.keys():
        if COLUMNS[name].belongs_to == "response":
            columns[name] = figures[name]
        else:
            of_prompts[name], _ = figures[name]  # read before either response begins: the same of both
    if "turn_logps" in figures:
        frozen = (batch[key] for key in REFERENCE_TURN_KEYS)
        columns["turn_log_ratios"] = tuple(of - old for of, old in zip(figures["turn_logps"], frozen, strict=True))
    if previous[0] is not None:
        columns["base_logps"] = previous
    if "chosen_player" in batch:
        columns["player"] = (batch["chosen_player"], batch["rejected_player"])
    return PairLogprobs(
        *figures.get("logps", (None, None)),
        *reference,
        chosen_length=batch["chosen_length"],
        rejected_length=batch["rejected_length"],
        response_columns=columns,
        pair_columns=_label_columns(batch, default_margin) | of_prompts,
    )


# Label columns of the losses, under the names the data room gives them.
_LABEL_COLUMNS = {
    "strength": "strength",
    "consensus": "consensus",
    "flip_rate": "flip_rate",
    "tie": "tie",
    "both_bad": "both_bad",
    "win_rate_chosen": "chosen_win_rate",
    "win_rate_rejected": "rejected_win_rate",
    "preference_score_chosen": "chosen_preference_score",
    "preference_score_rejected": "rejected_preference_score",
}


# A win rate of 0 or 1 has the log-odds of one in a hundred, as in nemo_rpo.crowd.win_rates.
_SUREST = 0.01


def _label_columns(batch: MicroBatch, default_margin: float | None) -> dict[str, Tensor]:
    columns = {name: batch[key] for name, key in _LABEL_COLUMNS.items() if key in batch}
    if "win_rate" in batch:  # of the pair alone: the other response is what stands for the opponent
        p = batch["win_rate"]
        score = torch.logit(p, eps=_SUREST)
        of_pair = {"win_rate_chosen": p, "win_rate_rejected": 1 - p}
        of_pair |= {"preference_score_chosen": score, "preference_score_rejected": -score}
        columns = {**of_pair, **columns}
    margin = columns.get("preference_score_chosen") if "win_rate" in batch else None
    if default_margin is not None:
        margin = torch.full_like(batch["sign"][:, 0], default_margin)
    if "chosen_reward" in batch and "rejected_reward" in batch:
        margin = _known(batch["chosen_reward"] - batch["rejected_reward"], margin)
    if "margin" in batch:
        margin = _known(batch["margin"], margin)
    columns |= {name: batch[name] for name in REFERENCE_POINTS if name in batch}
    return columns if margin is None else columns | {"margin": margin}


def _known(values: Tensor, otherwise: Tensor | None) -> Tensor:
    """``values``, and ``otherwise`` where the data had none (NaN)."""
    return values if otherwise is None else torch.where(values.isnan(), otherwise, values)


def votes_of(batch: MicroBatch) -> Votes:
    """Who said what about the pairs of the micro-batch."""
    return Votes(batch["annotator"], batch["sign"], batch.get("weight"))
