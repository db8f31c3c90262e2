"""What a listwise loss sees: ranked responses to a prompt, and their split into pairs for the EM."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.errors import ConfigError
from nemo_rpo.losses.pair import PairLogprobs, widen


@dataclass(frozen=True)
class RankingLogprobs:
    r"""Log-probs of the responses to [prompts] prompts, best first.

    Attributes:
        policy: summed log π of the responses [prompts, n].
        reference: the same under the reference, or None.
        length: response tokens [prompts, n], or None.
        columns: side columns [prompts, n], e.g. ``reward``, ``base_logps``, ``score``.
        size: how many of the n are real [prompts], the rest being padding (finite values); None where all are.
    """

    policy: Tensor | None
    reference: Tensor | None = None
    length: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    size: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("policy", "reference", "length"):
            object.__setattr__(self, name, widen(getattr(self, name)))
        object.__setattr__(self, "columns", {name: widen(tensor) for name, tensor in self.columns.items()})
        shapes = {tuple(tensor.shape[:2]) for tensor in self._tensors()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise ConfigError(f"the tensors of rankings must share the shape [prompts, n]; got {sorted(shapes)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(prompts, n)."""
        return tuple(next(iter(self._tensors())).shape[:2])

    def valid(self) -> Tensor:
        """True where a response is real [prompts, n]."""
        prompts, n = self.shape
        device = next(iter(self._tensors())).device
        if self.size is None:
            return torch.ones(prompts, n, dtype=torch.bool, device=device)
        return torch.arange(n, device=device) < self.size[:, None]

    def split(self) -> tuple[PairLogprobs, Tensor]:
        r"""Every pair i < j of a ranking as "i beats j", one forward pass a response and not a pair.

        Returns:
            The pairs [prompts · n(n-1)/2], ordered by prompt, and their weights, 2/(K(K-1)) so that a prompt with K
            real responses counts once; 0 for pairs with padding. ``reward`` becomes the label's ``margin``.

        >>> x = RankingLogprobs(torch.tensor([[-1.0, -2.0, -3.0]]), columns={"reward": torch.tensor([[2.0, 1.5, 0.0]])})
        >>> pairs, weight = x.split()
        >>> pairs.policy_rejected, pairs.pair_columns["margin"], weight
        (tensor([-2., -3., -3.]), tensor([0.5000, 2.0000, 1.5000]), tensor([0.3333, 0.3333, 0.3333]))
        """
        n = self.shape[1]
        device = next(iter(self._tensors())).device
        better, worse = torch.triu_indices(n, n, 1, device=device)

        def both(tensor: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            if tensor is None:
                return None, None
            return tensor[:, better].flatten(0, 1), tensor[:, worse].flatten(0, 1)

        rewards = both(self.columns.get("reward"))
        pairs = PairLogprobs(
            *both(self.policy),
            *both(self.reference),
            *both(self.length),
            response_columns={name: both(tensor) for name, tensor in self.columns.items() if name != "reward"},
            pair_columns={} if rewards[0] is None else {"margin": rewards[0] - rewards[1]},
        )
        valid = self.valid()
        size = valid.sum(-1, keepdim=True)
        weight = valid[:, worse] * 2.0 / (size * (size - 1)).clamp(min=1)
        return pairs, weight.flatten()

    @classmethod
    def joined(cls, pairs: PairLogprobs, size: Tensor) -> RankingLogprobs:
        r"""The rankings whose :meth:`split` gave ``pairs``, ``size`` [prompts] being the real responses of each.

        Rewards come back from the margins to the best response, up to a constant a prompt, which no loss of rankings
        depends on.

        >>> x = RankingLogprobs(torch.tensor([[-1.0, -2.0, -3.0]]), columns={"reward": torch.tensor([[2.0, 1.5, 0.0]])})
        >>> again = RankingLogprobs.joined(x.split()[0], torch.tensor([3]))
        >>> again.policy, again.columns["reward"]
        (tensor([[-1., -2., -3.]]), tensor([[ 0.0000, -0.5000, -2.0000]]))
        """
        of_prompt = len(pairs) // len(size)
        others = (1 + math.isqrt(1 + 8 * of_prompt)) // 2 - 1  # the best one's pairs come first, one with each other

        def with_best(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (len(size), of_prompt))[:, :others]

        def both(chosen: Tensor | None, rejected: Tensor | None) -> Tensor | None:
            return None if chosen is None else torch.cat((with_best(chosen)[:, :1], with_best(rejected)), 1)

        columns = {name: both(*sides) for name, sides in pairs.response_columns.items()}
        if "margin" in pairs.pair_columns:
            columns["reward"] = F.pad(-with_best(pairs.pair_columns["margin"]), (1, 0))
        return cls(
            both(pairs.policy_chosen, pairs.policy_rejected),
            both(pairs.reference_chosen, pairs.reference_rejected),
            both(pairs.chosen_length, pairs.rejected_length),
            columns,
            size,
        )

    def require(self, needs: Iterable[str], loss: str) -> None:
        """Raises :class:`ConfigError` naming the ``loss`` and what is absent; ``margin`` is met by the ``reward``s."""
        fields = {"policy": self.policy, "reference": self.reference, "lengths": self.length}
        missing = []
        for need in sorted(needs):
            column = "reward" if need == "margin" else need
            if (fields[need] if need in fields else self.columns.get(column)) is None:
                missing.append(column)
        if missing:
            raise ConfigError(f"the loss '{loss}' needs what these rankings do not have: {', '.join(missing)}")

    def _tensors(self) -> list[Tensor]:
        given = (self.policy, self.reference, self.length, *self.columns.values())
        return [tensor for tensor in given if tensor is not None]
