"""The side columns a loss may need: what they mean, and whether they follow a response or stay with the label.

The distinction decides what a turned-round pair says. A log-prob follows its response. "The winner should win by this
much" is a statement about the label: were the reward gap to follow the responses, L(w≻l) and L(l≻w) would be the same
number, Δ ≡ 0, and the EM could never doubt a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """A side column.

    Attributes:
        name: its key, in batches and in the data.
        belongs_to: ``response``: one tensor for each of the two responses, exchanged when the pair is turned round.
            ``label``: one tensor a pair, unmoved when the pair is turned round.
        source: ``row``: read from the data. ``forward``: computed from model outputs, possibly with gradient.
        meaning: one line for error messages.
        of_reference_tokens: it compares with the reference token by token, for which a log-prob a response, all that a
            cached reference keeps, is not enough.
    """

    name: str
    belongs_to: Literal["response", "label"]
    source: Literal["row", "forward"]
    meaning: str
    of_reference_tokens: bool = False


_COLUMNS = (
    Column("base_logps", "response", "forward", "summed log-probs under the previous iterate π_t [pairs]"),
    Column("kl", "response", "forward", "sequential KL Σ_t KL(reference ‖ policy) over the response [pairs]", True),
    Column("turn_log_ratios", "response", "forward", "log π/π_ref of each assistant turn, padded [pairs, turns]", True),
    Column("turns", "response", "row", "number of assistant turns [pairs]"),
    Column("score", "response", "forward", "output of the reward head [pairs]"),
    Column("scores", "response", "forward", "outputs of a reward head with one a group [pairs, groups]"),
    Column("player", "response", "row", "place of the response's model in model.data.players [pairs]"),
    Column("embedding", "response", "forward", "output of the preference head, of even width [pairs, width]"),
    Column("margin", "label", "row", "score(chosen) - score(rejected), 0 or more under the EM [pairs]"),
    Column("strength", "label", "row", "strength of the preference, e.g. 1, 2, 3 in HelpSteer [pairs]"),
    Column("win_rate_chosen", "label", "row", "probability that chosen beats the opponent policy [pairs]"),
    Column("win_rate_rejected", "label", "row", "probability that rejected beats the opponent policy [pairs]"),
    Column("preference_score_chosen", "label", "row", "log-odds score s(chosen ≻ π_t) [pairs]"),
    Column("preference_score_rejected", "label", "row", "log-odds score s(rejected ≻ π_t) [pairs]"),
    Column("consensus", "label", "row", "log-odds that the recorded choice is right, by its annotators alone [pairs]"),
    Column("flip_rate", "label", "row", "probability that the recorded choice was flipped, between 0 and 1 [pairs]"),
    Column("tie", "label", "row", "1 where the annotator called a tie, else 0 [pairs]"),
    Column("both_bad", "label", "row", "1 where both responses were called bad, else 0 [pairs]"),
    Column("coefficients", "label", "forward", "strength of every model at the prompt [pairs, players]"),
    Column("tie_width", "label", "forward", "how close two models must be for a tie, at the prompt [pairs]"),
    Column("group_weight", "label", "forward", "weights of a pair's annotators on the groups, sum 1 [pairs, groups]"),
    Column("mismatched_kl", "label", "forward", "mean log π/π_ref behind other prompts, 0 or more [pairs]"),
    Column("mean_log_ratio", "label", "forward", "mean log π/π_ref of the completions of the batch [pairs]"),
    Column("gate", "label", "forward", "scale of each block of the preference head, from the prompt [pairs, width/2]"),
)

COLUMNS = {column.name: column for column in _COLUMNS}
