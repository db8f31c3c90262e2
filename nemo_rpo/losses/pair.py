"""What a preference loss sees: the log-probs of pairs, and nothing of tokens, ranks or annotators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.errors import ConfigError
from nemo_rpo.losses.columns import COLUMNS

Two = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PairLogprobs:
    r"""Log-probs of [pairs] preference pairs, with their side columns.

    Floating tensors narrower than float32 are widened on entry, so no loss ever computes in bf16.

    Attributes:
        policy_chosen, policy_rejected: summed log π(y|x) of the responses [pairs], in nats; None where a reward model
            is trained and nothing is generated.
        reference_chosen, reference_rejected: the same under the frozen reference, or None.
        chosen_length, rejected_length: response tokens [pairs], or None.
        response_columns: name -> (chosen, rejected); they follow their response when the pair is turned round.
        pair_columns: name -> tensor; they belong to the label and stay where they are. See ``columns.py``.

    Raises:
        ConfigError: shapes that do not share the leading dimension, or a known column on the wrong side.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), pair_columns={"margin": torch.tensor([2.0])})
    >>> turned = x.swapped()
    >>> turned.policy_chosen, turned.pair_columns["margin"]
    (tensor([-51.5000]), tensor([2.]))
    """

    policy_chosen: Tensor | None
    policy_rejected: Tensor | None
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    chosen_length: Tensor | None = None
    rejected_length: Tensor | None = None
    response_columns: Mapping[str, Two] = field(default_factory=dict)
    pair_columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _LOGPS:
            object.__setattr__(self, name, widen(getattr(self, name)))
        widened = {name: (widen(chosen), widen(rejected)) for name, (chosen, rejected) in self.response_columns.items()}
        object.__setattr__(self, "response_columns", widened)
        object.__setattr__(self, "pair_columns", {name: widen(value) for name, value in self.pair_columns.items()})
        self._check_sides()
        self._check_shapes()

    def __len__(self) -> int:
        """The number of pairs."""
        return len(next(tensor for _, tensor in self._tensors()))

    def swapped(self) -> PairLogprobs:
        """The same pairs with the label turned round; the only way a pair is turned round."""
        return replace(
            self,
            policy_chosen=self.policy_rejected,
            policy_rejected=self.policy_chosen,
            reference_chosen=self.reference_rejected,
            reference_rejected=self.reference_chosen,
            chosen_length=self.rejected_length,
            rejected_length=self.chosen_length,
            response_columns={name: (rejected, chosen) for name, (chosen, rejected) in self.response_columns.items()},
        )

    def policy(self) -> Two:
        """log π of chosen and rejected, [pairs] each."""
        return self.policy_chosen, self.policy_rejected

    def mean_policy(self) -> Two:
        """Token-averaged log π of chosen and rejected, [pairs] each; an empty response has 0."""
        chosen_length, rejected_length = self._lengths()
        return self.policy_chosen / chosen_length, self.policy_rejected / rejected_length

    def log_ratios(self, average: bool = False) -> Two:
        """a = log π/π_ref of chosen and rejected, [pairs] each; over the response's tokens if ``average``."""
        chosen, rejected = self.policy_chosen - self.reference_chosen, self.policy_rejected - self.reference_rejected
        if not average:
            return chosen, rejected
        chosen_length, rejected_length = self._lengths()
        return chosen / chosen_length, rejected / rejected_length

    def base_log_ratios(self) -> Two:
        """log π/π_t of chosen and rejected, [pairs] each, π_t the previous iterate."""
        chosen, rejected = self.response_columns["base_logps"]
        return self.policy_chosen - chosen, self.policy_rejected - rejected

    def require(self, needs: Iterable[str], loss: str) -> None:
        """Raises :class:`ConfigError` naming the ``loss`` and everything in ``needs`` that is absent."""
        missing = [need for need in sorted(needs) if not self._has(need)]
        if missing:
            described = "; ".join(_describe(need) for need in missing)
            raise ConfigError(f"the loss '{loss}' needs what this batch does not have: {described}")

    def _has(self, need: str) -> bool:
        if need in _FIELDS_OF:
            return all(getattr(self, name) is not None for name in _FIELDS_OF[need])
        return need in self.response_columns or need in self.pair_columns

    def _lengths(self) -> Two:
        dtype = self.policy_chosen.dtype
        return self.chosen_length.to(dtype).clamp(min=1), self.rejected_length.to(dtype).clamp(min=1)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name in (*_LOGPS, *_LENGTHS):
            if (value := getattr(self, name)) is not None:
                yield name, value
        for name, (chosen, rejected) in self.response_columns.items():
            yield f"{name} (chosen)", chosen
            yield f"{name} (rejected)", rejected
        yield from self.pair_columns.items()

    def _check_sides(self) -> None:
        for name in self.response_columns:
            if name in COLUMNS and COLUMNS[name].belongs_to == "label":
                raise ConfigError(
                    f"the column '{name}' belongs to the label: pass it in pair_columns, one tensor a pair"
                )
        for name in self.pair_columns:
            if name in COLUMNS and COLUMNS[name].belongs_to == "response":
                raise ConfigError(
                    f"the column '{name}' follows the response: pass (chosen, rejected) in response_columns"
                )

    def _check_shapes(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors()}
        if not shapes:
            raise ConfigError("PairLogprobs holds no tensor: give the policy's log-probs, or a reward model's columns")
        if any(not shape for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
            met = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise ConfigError(f"the tensors of a batch must share their first dimension [pairs]; got {met}")


_LOGPS = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
_LENGTHS = ("chosen_length", "rejected_length")
_FIELDS_OF = {"policy": _LOGPS[:2], "reference": _LOGPS[2:], "lengths": _LENGTHS}
_MEANING_OF = {
    "policy": "log-probs of the policy",
    "reference": "log-probs of the reference policy",
    "lengths": "response lengths in tokens",
}


def _describe(need: str) -> str:
    if need in _FIELDS_OF:
        return f"{' and '.join(_FIELDS_OF[need])} ({_MEANING_OF[need]})"
    return f"the column '{need}' ({COLUMNS[need].meaning})" if need in COLUMNS else f"the column '{need}'"


def widen(value: Any) -> Any:
    """A floating tensor in float32 or wider, and anything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.promote_types(value.dtype, torch.float32))
    return value
