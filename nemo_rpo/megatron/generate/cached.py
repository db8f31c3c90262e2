"""Text with a key-value cache, from a model spread over tensor and pipeline ranks, through the schedules that train it.

A prompt runs once, then one position a token. Rows of a batch share their positions: all start with the length of the
shortest prompt, and the others take their next prompt token instead of a drawn one until theirs is used up. Every
position is the one that training gives it, whatever else is in the batch, and what is drawn depends on the row's own
seed: the same prompt and seed give the same text in any batch, on any rank and under any layout.

Layouts: tensor, pipeline (interleaved too) and data parallelism, in any combination. Not context parallelism, which
splits the positions, nor sequence parallelism, which splits them among the tensor-parallel ranks: a model for
generation is built without (its weights are the same).

Shapes: b rows of a micro-batch, v vocabulary of this tensor-parallel rank (V of all).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.compat.cached_attention import core_attention_of
from nemo_rpo.megatron.compat.gpt_model import decoder_output
from nemo_rpo.megatron.frozen_policy import evaluation_mode
from nemo_rpo.megatron.generate.cache import CachedAttention, Place
from nemo_rpo.megatron.generate.drawing import Drawing, Drawn, draw, uniform
from nemo_rpo.megatron.step.schedule import run_schedule

# Rows whose prompts are of more different lengths are no batch: the shorter ones would wait.
_SPREAD = 32
_IDLE = 0  # what a row that has ended goes on with; nobody reads it


@dataclass(frozen=True)
class Text:
    """What was generated for one prompt.

    Attributes:
        ids: new tokens, the one that ended it included.
        logps: of each under the model, at temperature 1.
        drawn_logps: of each under what it was drawn from, by temperature and top_p; 0 where nothing is drawn.
        ended: by a token that ends; else by the limit.
    """

    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    drawn_logps: list[float] = field(default_factory=list)
    ended: bool = False


def generate(
    chunks: Sequence[torch.nn.Module],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
    vocab_size: int,
    how: Drawing = Drawing(),  # noqa: B008  frozen
    seeds: Sequence[int] = (),
    rows: int = 32,
) -> Iterator[tuple[int, Text]]:
    """For each prompt, as its batch is done, its place among ``prompts`` and its text; the same on every rank of the
    tensor and pipeline groups. Data-parallel replicas may have different prompts; where they share experts all have the
    same (:func:`nemo_rpo.megatron.parallel.independent_replica`), and each token costs a broadcast over the world too.

    Args:
        chunks: of :func:`nemo_rpo.megatron.network.build.build_model_chunks`.
        prompts: token ids; at least one each.
        max_new_tokens: a text ends after so many, or behind a token of ``stop_ids``.
        vocab_size: without its padding, which is never drawn.
        how: temperature and top_p. seeds: one a prompt, where something is drawn.
        rows: prompts side by side, in all micro-batches.

    Memory: 2 · layers · rows · (longest prompt + max_new_tokens) · heads' keys numbers, of this rank's share of layers
    and heads. Collectives, for each token: the model's own; one all-gather of ``[b, v]`` over the tensor group, and one
    broadcast of 24 bytes a row over the pipeline group.

    Raises:
        ConfigError: a layout that it does not run under.
    """
    models = [_unwrapped(chunk) for chunk in chunks]
    config = models[0].config
    if config.sequence_parallel or config.context_parallel_size > 1:
        raise ConfigError(
            "text is generated one position at a time, and these ranks split positions: set model.sequence_parallel="
            "false and model.context_parallel_size=1"
        )
    seeds = seeds or [0] * len(prompts)
    place = Place()

    def cached(original: torch.nn.Module) -> CachedAttention:
        return CachedAttention(place, getattr(original, "softmax_scale", None))

    with core_attention_of(models, cached), evaluation_mode(chunks), torch.no_grad():
        for batch in _batches(prompts, rows):
            generation = _Generation(chunks, models, place, vocab_size, how, set(stop_ids))
            texts = generation.run([prompts[i] for i in batch], [seeds[i] for i in batch], max_new_tokens)
            yield from zip(batch, texts, strict=True)


def _batches(prompts: Sequence[Sequence[int]], rows: int) -> Iterator[list[int]]:
    """Places of prompts of about one length, ``rows`` at most."""
    batch: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if batch and (len(batch) == rows or len(prompts[i]) - len(prompts[batch[0]]) > _SPREAD):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@dataclass
class _Generation:
    """One batch of prompts on its way."""

    chunks: Sequence[torch.nn.Module]
    models: Sequence[torch.nn.Module]
    place: Place
    vocab_size: int
    how: Drawing
    stop_ids: set[int]

    def run(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], limit: int) -> list[Text]:
        """Continues each of ``prompts``, token by token and all at once, until it ends or has ``limit`` new tokens."""
        texts = [Text() for _ in prompts]
        running = [True] * len(prompts)
        # Micro-batches of one shape: the last row stands in where they do not come out even.
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        count = stages if len(self.chunks) > 1 else min(stages, len(prompts))
        rows = [list(prompt) for prompt in prompts]
        rows += [list(rows[-1]) for _ in range(-len(rows) % count)]
        self.place.start(max(map(len, rows)) + limit)
        upto = min(map(len, rows))
        while any(running):
            numbers = [uniform(seeds[i], len(texts[i].ids)) if i < len(texts) else 0.0 for i in range(len(rows))]
            found = self._next(rows, upto, count, numbers)
            for i, row in enumerate(rows):
                if len(row) > upto:
                    continue  # its next token is its prompt's
                row.append(_IDLE)
                if i < len(texts) and running[i]:
                    row[-1] = int(found[0][i])
                    self._take(texts[i], row[-1], found[1][i], found[2][i])
                    ended = row[-1] in self.stop_ids
                    if ended or len(texts[i].ids) == limit:
                        running[i], texts[i] = False, _ended(texts[i], ended)
            self.place.offset, upto = upto, upto + 1
        return texts

    @staticmethod
    def _take(text: Text, token: int, logp: float, drawn_logp: float) -> None:
        text.ids.append(token)
        text.logps.append(logp)
        text.drawn_logps.append(drawn_logp)

    def _next(self, rows: list[list[int]], upto: int, count: int, numbers: list[float]) -> list[list[float]]:
        """Token, log-prob and drawn log-prob of each row behind position ``upto``, on every rank of the groups."""
        device = next(self.models[0].parameters()).device
        ids = torch.tensor([row[self.place.offset : upto] for row in rows], device=device)
        positions = torch.arange(self.place.offset, upto, device=device).expand_as(ids)
        uniforms = torch.tensor(numbers, dtype=torch.float64, device=device)
        each = len(rows) // count

        def step(micro_batches: Iterator[int], chunk: torch.nn.Module) -> tuple[Tensor, Callable[..., Tensor]]:
            number = next(micro_batches)
            own = slice(number * each, (number + 1) * each)
            self.place.micro_batch = number
            output = _last_logits(_unwrapped(chunk), ids[own], positions[own], self.place.offset)
            return output, lambda logits, non_loss_data: _packed(self._draw(logits, uniforms[own]))

        outputs = run_schedule(self.chunks, step, range(count), each, upto - self.place.offset)
        found = torch.cat(outputs, 1) if outputs else torch.empty(3, len(rows), dtype=torch.float64, device=device)
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(found, src=last, group=parallel_state.get_pipeline_model_parallel_group())
        if parallel_state.get_expert_model_parallel_world_size() > 1:
            dist.broadcast(found, src=0)  # else a last bit could end a text on one rank alone
        return found.tolist()

    def _draw(self, logits: Tensor, uniforms: Tensor) -> Drawn:
        """From logits ``[b, v]`` of this tensor-parallel rank; the same on all of them."""
        group = parallel_state.get_tensor_model_parallel_group()
        if dist.get_world_size(group) > 1:
            parts = [torch.empty_like(logits) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, logits, group=group)
            logits = torch.cat(parts, 1)
        return draw(logits, self.vocab_size, uniforms, self.how)


def _packed(drawn: Drawn) -> Tensor:
    """float64 ``[3, b]``; ids up to 2^53 are exact."""
    return torch.stack((drawn.ids.double(), drawn.logps, drawn.drawn_logps))


def _ended(text: Text, ended: bool) -> Text:
    return Text(text.ids, text.logps, text.drawn_logps, ended)


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    while hasattr(model, "module"):
        model = model.module
    return model


def _last_logits(model: torch.nn.Module, ids: Tensor, positions: Tensor, offset: int) -> Tensor:
    """The stage's output for the new positions: hidden states ``[s, b, h]``, or on the last stage the logits ``[b, v]``
    behind the last of them, fp32.
    """
    hidden = decoder_output(model, ids, positions, None, None, offset)
    if not model.post_process:
        return hidden
    weight = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else None
    logits, _ = model.output_layer(hidden[-1:], weight=weight)
    return logits[0].float().contiguous()
