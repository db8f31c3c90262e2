"""The next token of each row: the likeliest, or one drawn by a number of the row's own.

Shapes: b rows, V vocabulary of all tensor-parallel ranks, with its padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token, of equally likely ones the lowest id.
        top_p: the least set of likeliest tokens whose probability is at least this is drawn from.
    """

    temperature: float = 0.0
    top_p: float = 1.0


class Drawn(NamedTuple):
    """Of each row [b]: the token's id int64, its log-prob under the model, and under what it was drawn from (0 of a
    likeliest token), float64.
    """

    ids: Tensor
    logps: Tensor
    drawn_logps: Tensor


def draw(logits: Tensor, vocab_size: int, uniform: Tensor, how: Drawing) -> Drawn:
    """Draws by the inverse of the distribution function, the tokens in order of their ids.

    Sums are in float64 and in a fixed order, so that layouts whose logits agree to rounding draw the same tokens: the
    functions differ by some 1e-7, and that is how often a number falls between the two.

    Args:
        logits: ``[b, V]``, any float dtype; ids from ``vocab_size`` on are padding.
        uniform: float64 ``[b]`` in [0, 1), :func:`uniform` of each row; not read where nothing is drawn.
    """
    logits = logits[:, :vocab_size].double()
    log_p = logits.log_softmax(-1)
    if how.temperature == 0:
        ids = logits.argmax(-1)
        return Drawn(ids, _of(log_p, ids), torch.zeros_like(uniform))
    p = (logits / how.temperature).softmax(-1)
    if how.top_p < 1:
        largest, order = p.sort(dim=-1, descending=True, stable=True)
        before = largest.cumsum(-1) - largest
        p = p.masked_fill(torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before >= how.top_p), 0.0)
    function = p.cumsum(-1)
    total = function[:, -1:]
    ids = torch.searchsorted(function, uniform.unsqueeze(-1) * total, right=True).squeeze(-1)
    # A number just below 1 may round to the total; the last token that can be drawn is meant.
    ids = torch.minimum(ids, (p > 0).long().cumsum(-1).argmax(-1))
    return Drawn(ids, _of(log_p, ids), (_of(p, ids) / total.squeeze(-1)).log())


def _of(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def uniform(seed: int, place: int) -> float:
    """The number in [0, 1) that decides the token at ``place`` of the row with this ``seed``: the same in every batch,
    on every rank and device (splitmix64 of Steele, Lea and Flood, 2014).

    >>> uniform(7, 0), uniform(7, 1)
    (0.5243459416779314, 0.30213903321684277)
    """
    mixed = (_mixed(seed & _WORD) + (place + 1) * 0x9E3779B97F4A7C15) & _WORD
    return (_mixed(mixed) >> 11) * 2.0**-53


def _mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)
