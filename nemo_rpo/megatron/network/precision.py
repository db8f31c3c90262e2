"""The precision in which a model's linear layers run: bf16, or FP8 by Transformer Engine.

``model.rpo.logprob_precision`` names the policy's, ``reference_logprob_precision`` that of the frozen policies. The
forward that gives log-probs is also the one that is trained, so FP8 reaches the policy's backward: gradients with
respect to inputs and weights are FP8 products as well, of upstream gradients in e5m2 (tensorwise) or in e4m3 by blocks
(the others). Weights, their gradients, optimizer, attention, norms, embedding and the language-model head stay as they
are; logits are fp32.

``fp8_tensorwise``  one scale a tensor, of the tensor at hand ("current scaling"): a log-prob depends a little on the
    batch that it is computed in, so cached reference log-probs differ from live ones by rounding.
``fp8_blockwise``  one scale for 128 numbers of a token, and for 128×128 of a weight: a log-prob depends on its own
    sequence alone.
``fp8_mxfp8``  one scale, a power of 2, for 32 numbers of a token and of a weight, which Blackwell's products take by
    themselves: a log-prob depends on its own sequence alone.
``fp8_delayed``  is refused (:mod:`nemo_rpo.config.precision`): its scales come from the history of earlier steps, which
    Transformer Engine does not keep under ``no_grad``, where a frozen reference lives.

Every product of Hopper's uses the split accumulator (fp32 partial sums): Transformer Engine's default for tensorwise
forwards, and therefore Megatron-Core's ``fp8_recipe: tensorwise``, is the fast one, which keeps fewer bits. So the
recipe is entered here, around each layer and not around the model: activation recompute runs layers again after the
forward is over.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.lengths import FP8_TOKENS
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.compat.transformer_engine import autocast, objections

_RECIPES = {
    "fp8_tensorwise": "Float8CurrentScaling",
    "fp8_blockwise": "Float8BlockScaling",
    "fp8_mxfp8": "MXFP8BlockScaling",
}
# The fewest: Ada for scales of tensors, Hopper for those of blocks, Blackwell for scales that are powers of 2.
_CAPABILITY = {"fp8_tensorwise": (8, 9), "fp8_blockwise": (9, 0), "fp8_mxfp8": (10, 0)}


# --- can it be run here


@dataclass(frozen=True)
class Machine:
    """What decides whether FP8 can be run.

    Attributes:
        capability: of the card; None without one.
        transformer_engine: its version; None where it is not installed.
        recipes: which of Transformer Engine's recipe classes there are.
        objections: precision → what Transformer Engine itself says against it, of those that it refuses.
    """

    capability: tuple[int, int] | None
    transformer_engine: str | None
    recipes: frozenset[str] = frozenset()
    objections: tuple[tuple[str, str], ...] = ()


def this_machine() -> Machine:
    """The GPU's capability and what Transformer Engine offers here."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if importlib.util.find_spec("transformer_engine") is None:
        return Machine(capability, None)
    version = importlib.metadata.version("transformer_engine")
    if capability is None:
        return Machine(None, version)
    from transformer_engine.common import recipe

    recipes = frozenset(kind for kind in _RECIPES.values() if hasattr(recipe, kind))
    return Machine(capability, version, recipes, objections())


def check_machine(precision: str, machine: Machine) -> None:
    """Raises :class:`ConfigError` where ``machine`` cannot run ``precision``, with the reason.

    >>> check_machine("bf16", Machine(None, None))
    >>> check_machine("fp8_blockwise", Machine((8, 9), "2.11.0", frozenset({"Float8BlockScaling"})))
    Traceback (most recent call last):
    nemo_rpo.errors.ConfigError: model.rpo.logprob_precision=fp8_blockwise needs a card of compute capability 9.0, and \
this one has 8.9: set it to fp8_tensorwise
    """
    if precision == "bf16":
        return
    setting, least = f"model.rpo.logprob_precision={precision}", _CAPABILITY[precision]
    if machine.capability is None:
        raise ConfigError(f"{setting} needs a GPU, and torch sees none: set it to bf16")
    if machine.capability < least:
        other = "fp8_tensorwise" if machine.capability >= _CAPABILITY["fp8_tensorwise"] else "bf16"
        needed, has = (".".join(map(str, version)) for version in (least, machine.capability))
        raise ConfigError(
            f"{setting} needs a card of compute capability {needed}, and this one has {has}: set it to {other}"
        )
    if machine.transformer_engine is None:
        raise ConfigError(f"{setting} needs Transformer Engine: install transformer-engine[pytorch], or set it to bf16")
    if _RECIPES[precision] not in machine.recipes:
        raise ConfigError(
            f"{setting} needs Transformer Engine's {_RECIPES[precision]}, which {machine.transformer_engine} does not "
            "have: install 2.3 or newer, or set it to bf16"
        )
    if said := dict(machine.objections).get(precision):
        raise ConfigError(
            f"{setting} is refused by Transformer Engine ({said.rstrip('.')}): set it to another precision"
        )


def check_sizes(precision: str, architecture: GPTArchitecture, tensor_parallel: int) -> None:
    """Raises :class:`ConfigError` where a linear layer's slice on a rank does not suit FP8 products: both sides of a
    weight are multiples of 16 (tensorwise) or of the block of a scale, 128 (blockwise) or 32 (mxfp8).
    """
    if precision == "bf16":
        return
    head, multiple = architecture.kv_channels, FP8_TOKENS[precision]
    heads = architecture.num_attention_heads
    sizes = {
        "hidden_size": architecture.hidden_size,
        "ffn_hidden_size / tensor ranks": architecture.ffn_hidden_size // tensor_parallel,
        "attention heads × head size / tensor ranks": heads * head // tensor_parallel,
        "(heads + 2 × groups) × head size / tensor ranks": (heads + 2 * architecture.num_query_groups)
        * head
        // tensor_parallel,
    }
    for name, size in sizes.items():
        if size % multiple:
            other = "bf16" if precision == "fp8_tensorwise" else "fp8_tensorwise or bf16"
            raise ConfigError(
                f"model.rpo.logprob_precision={precision} needs sizes that are multiples of {multiple}, and {name} is "
                f"{size}: set it to {other}, or lower model.tensor_model_parallel_size"
            )


# --- running it


def transformer_engine_recipe(precision: str) -> AbstractContextManager:
    """Transformer Engine's autocast with the recipe of ``precision``; nothing for bf16."""
    if precision == "bf16":
        return contextlib.nullcontext()
    from transformer_engine.common import recipe

    if precision == "fp8_mxfp8":  # the products scale by themselves, and there is one way to add them up
        return autocast(getattr(recipe, _RECIPES[precision])())
    exact = recipe.MMParams(use_split_accumulator=True)
    products = {f"fp8_gemm_{product}": exact for product in ("fprop", "dgrad", "wgrad")}
    return autocast(getattr(recipe, _RECIPES[precision])(**products))


class Precision:
    """The precision of the layers that share this object; :meth:`switched` changes it inside a block.

    Args:
        name: ``bf16``, ``fp8_tensorwise``, ``fp8_blockwise`` or ``fp8_mxfp8``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def of_a_layer(self) -> AbstractContextManager:
        """The context in which one layer runs forward."""
        return transformer_engine_recipe(self.name)

    @contextlib.contextmanager
    def switched(self, name: str) -> Iterator[None]:
        """Runs the block in the precision ``name``."""
        before, self.name = self.name, name
        try:
            yield
        finally:
            self.name = before


class PrecisionLayer(TransformerLayer):
    """A TransformerLayer whose linear layers run in a :class:`Precision`, in the forward and wherever it is run again.

    Its configuration must have ``disable_parameter_transpose_cache``: Megatron's Transformer Engine modules otherwise
    keep their FP8 weights from the first micro-batch that they see, and here the weights of policy and reference take
    turns in one module.
    """

    def __init__(self, *args: Any, precision: Precision, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.precision = precision

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's, in its precision."""
        with self.precision.of_a_layer():
            return super().forward(*args, **kwargs)
