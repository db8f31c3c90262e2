"""A policy that answers: its weights under a run's layout, its tokenizer, and how its answers end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.schema import LogprobPrecision
from nemo_rpo.data.rows import Text
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.errors import DataError
from nemo_rpo.evaluation.checkpoint import Target
from nemo_rpo.evaluation.speaking_settings import SpeakingSettings


class Answer(NamedTuple):
    """One answer.

    Attributes:
        text: without what ends it.
        tokens: new ones, the one that ended it included.
        ended: by itself; else at the limit.
        logprob: log π of them, at temperature 1. drawn_logprob: under what they were drawn from.
    """

    text: str
    tokens: int
    ended: bool
    logprob: float
    drawn_logprob: float


def without_split_positions(target: Target) -> None:
    """Sets a layout that text can be generated under; the weights on each rank are the same without them. Call it
    before the ranks take their places: context-parallel ones become replicas.
    """
    target.cfg.model.context_parallel_size, target.cfg.model.sequence_parallel = 1, False


def loaded(target: Target, precision: LogprobPrecision | None = None) -> tuple[GPTArchitecture, list[torch.nn.Module]]:
    """The model's shape, and its chunks on this rank with the weights, and adapters, of ``target`` in place; their
    layers in ``precision`` (None: the policy's). Collective over the world.
    """
    from nemo_rpo.megatron.network.build import build_model_chunks
    from nemo_rpo.megatron.network.precision import Precision
    from nemo_rpo.training import setup

    cfg = target.cfg
    base = setup.starting_point(cfg) if cfg.model.peft.lora else target.weights
    architecture = setup.stored_architecture(base, cfg)
    chunks = build_model_chunks(architecture, cfg, None if precision is None else Precision(precision))
    setup.weights_loader(base, architecture, cfg)(chunks)
    if cfg.model.peft.lora:
        setup.target_loader(target.weights, architecture, cfg)(chunks)
    return architecture, chunks


@dataclass
class Speaker:
    """A policy and its tokenizer, on this rank."""

    chunks: list[torch.nn.Module]
    tokenizer: PreferenceTokenizer
    vocab_size: int
    positions: int
    settings: SpeakingSettings

    @classmethod
    def load(cls, target: Target, settings: SpeakingSettings) -> Speaker:
        """Collective over the world: the weights are read."""
        from nemo_rpo.training.data_of_run import tokenizer_spec

        architecture, chunks = loaded(target, "bf16")  # FP8 products want rows by the dozen; a token at a time has few
        tokenizer = PreferenceTokenizer.load(tokenizer_spec(target.cfg))
        return cls(chunks, tokenizer, architecture.vocab_size, architecture.max_position_embeddings, settings)

    def ids(self, prompt: Text) -> list[int]:
        """The prompt's tokens, up to where the answer begins. :class:`DataError` where there are none."""
        ids = self.tokenizer.render(prompt, "")[0].tolist()
        if not ids:
            raise DataError("a prompt has no token, so that there is nothing to answer: leave it out")
        return ids

    def has_room(self, ids: Sequence[int]) -> bool:
        """Whether the longest answer fits behind them."""
        return len(ids) + self.settings.max_new_tokens <= self.positions

    def end_of(self, prompt: Text) -> int:
        """The token that ends an answer: the template's end of turn, or the tokenizer's own."""
        _, ending = self.tokenizer.render(prompt, "")  # an empty response tells how responses end
        special = set(self.tokenizer.tokenizer.all_special_ids)
        return next((int(i) for i in ending if int(i) in special), self.tokenizer.eos_id)

    def answers(
        self, prompts: Sequence[Sequence[int]], stop: int, seeds: Sequence[int]
    ) -> Iterator[tuple[int, Answer]]:
        """For each prompt's ids, as its batch is done, its place and the answer; collective over the tensor and
        pipeline groups (:func:`nemo_rpo.megatron.generate.cached.generate`).
        """
        from nemo_rpo.megatron.generate.cached import generate
        from nemo_rpo.megatron.generate.drawing import Drawing

        drawing = Drawing(self.settings.temperature, self.settings.top_p)
        limit = self.settings.max_new_tokens
        made = generate(self.chunks, prompts, limit, [stop], self.vocab_size, drawing, seeds, self.settings.rows)
        for place, text in made:
            kept = text.ids[:-1] if text.ended else text.ids
            said = self.tokenizer.tokenizer.decode(kept, skip_special_tokens=True)
            yield place, Answer(said, len(text.ids), text.ended, sum(text.logps), sum(text.drawn_logps))
