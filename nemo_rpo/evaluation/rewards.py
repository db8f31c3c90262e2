"""What a reward or preference model says of each response, under the layout that it was trained in. On every rank.

Shapes: m responses, w numbers that the head gives for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_rpo.config.loss import base_loss
from nemo_rpo.data.texts import PromptResponses
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.truncation import fits, truncate_prompt
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.evaluation.checkpoint import Target
from nemo_rpo.evaluation.measurements import engine
from nemo_rpo.evaluation.replicas import Replicas
from nemo_rpo.evaluation.speaker import loaded
from nemo_rpo.losses import PairLogprobs, PreferenceLoss

_ROWS = 16  # scored side by side


@dataclass(frozen=True)
class _Tokens:
    prompt: np.ndarray
    response: np.ndarray


def reward_rows(target: Target, rows: Sequence[PromptResponses]) -> list[dict[str, Any]]:
    """A record a response, in the order of the rows; the same on every rank.

    ``file``, ``row``, ``name`` and ``response`` (its place in the row, from 0) say which one; ``tokens`` how long it
    is. ``score`` is the reward of a Bradley-Terry model; of a preference model (``gpm``) its mean log-odds against the
    row's other responses, None where there are none. Of that ``embedding`` (and ``gate``, where it has one) come too,
    so that any two responses can be compared; of groups of taste ``scores``, one a group. Of a model of battles
    (``p2l_*``) ``strengths`` are those of the models at the prompt, by name, whatever the response. A response that
    does not fit the model with one token of its prompt has None for all of them.

    Collective over the world: the model's forwards, one broadcast of 4 w bytes a response over the pipeline group, and
    one gather of them over the data-parallel group.

    Raises:
        RPOError: weights without that head, or a tokenizer that cannot be read.
    """
    cfg = target.cfg
    cfg.model.context_parallel_size = 1  # no response is long enough to split: those ranks score for themselves
    loss = base_loss(cfg.model)
    with engine(cfg) as device:
        from nemo_rpo.training.data_of_run import tokenizer_spec

        scorer = _Scorer.load(target, device)
        tokenizer = PreferenceTokenizer.load(tokenizer_spec(cfg))
        tokens = [_tokens(tokenizer, row, text, scorer.room) for row in rows for text in row.responses]
        found = scorer.score([None if of is None else of for of in tokens])
    return list(_records(rows, tokens, found, loss, cfg.model.data.players))


def _tokens(tokenizer: PreferenceTokenizer, row: PromptResponses, response: Any, room: int) -> _Tokens | None:
    prompt, ids = tokenizer.render(row.prompt, response, row.given)
    if not len(ids) or not fits(len(ids), room):
        return None
    return _Tokens(truncate_prompt(prompt, len(ids), room, tokenizer.bos_id), ids)


class _Scorer:
    """A model with a head, on this rank."""

    def __init__(
        self,
        chunks: list[torch.nn.Module],
        outputs: dict[str, int],
        room: int,
        device: torch.device,
        replicas: Replicas,
    ) -> None:
        self.chunks, self.outputs, self.room, self.device, self.replicas = chunks, outputs, room, device, replicas

    @classmethod
    def load(cls, target: Target, device: torch.device) -> _Scorer:
        """The checkpoint's model on ``device``. Raises :class:`ConfigError`: its loss trains no reward model."""
        from nemo_rpo.megatron.batch.loss_inputs import StepNeeds

        cfg, loss = target.cfg, base_loss(target.cfg.model)
        outputs = dict(StepNeeds.of(loss, cfg.model).reward_outputs)
        if not outputs:
            raise ConfigError(
                f"the loss '{loss.name}' trains no reward model: name a run of one, or its loss by model.rpo.base_loss"
            )
        _check_head(target.weights, outputs)
        architecture, chunks = loaded(target)
        room = min(architecture.max_position_embeddings, cfg.model.data.seq_length or cfg.model.encoder_seq_length)
        return cls(chunks, outputs, room, device, Replicas.here())

    def score(self, texts: Sequence[_Tokens | None]) -> list[np.ndarray | None]:
        """What the head gives for each response, float32 ``[w]``; None for None. Data-parallel ranks share them."""
        from megatron.core import parallel_state

        there = [i for i, text in enumerate(texts) if text is not None]
        there.sort(key=lambda i: len(texts[i].prompt) + len(texts[i].response))
        mine, found = [there[i] for i in self.replicas.share(len(there))], {}
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        for start in range(0, len(mine), _ROWS * stages):
            some = mine[start : start + _ROWS * stages]
            for i, row in zip(some, self._forward([texts[i] for i in some], stages), strict=True):
                found[i] = row
        of = self.replicas.together(found)
        return [of.get(i) for i in range(len(texts))]

    @torch.no_grad()
    def _forward(self, texts: list[_Tokens], count: int) -> np.ndarray:
        """Float32 ``[m, w]`` on every rank of the tensor and pipeline groups."""
        from nemo_rpo.megatron.batch.head_outputs import HeadRequest
        from nemo_rpo.megatron.frozen_policy import evaluation_mode
        from nemo_rpo.megatron.generate.without_cache import length_multiple
        from nemo_rpo.megatron.step.collectives import broadcast_from_last_stage
        from nemo_rpo.megatron.step.forward import ModelInput, run_model
        from nemo_rpo.megatron.step.schedule import run_schedule

        padded = [*texts, *[texts[-1]] * (-len(texts) % count)]
        rows, width = len(padded) // count, sum(self.outputs.values())
        longest = max(len(text.prompt) + len(text.response) for text in padded)
        longest = -(-longest // length_multiple(self.chunks)) * length_multiple(self.chunks)
        inputs = [
            _model_input(padded[start : start + rows], longest).map(lambda of: of.to(self.device))
            for start in range(0, len(padded), rows)
        ]
        request = HeadRequest(logps=False, reward=True)

        def step(batches: Iterator[ModelInput], chunk: torch.nn.Module) -> tuple[Any, Any]:
            return run_model(chunk, next(batches), request), lambda output, non_loss_data: self._columns(output)

        with evaluation_mode(self.chunks):
            outputs = run_schedule(self.chunks, step, inputs, rows, longest)
        found = torch.cat(outputs) if outputs else torch.zeros(len(padded), width, device=self.device)
        broadcast_from_last_stage(found)
        return found[: len(texts)].cpu().numpy()

    def _columns(self, output: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([output[name].float().view(-1, width) for name, width in self.outputs.items()], 1)


def _model_input(texts: Sequence[_Tokens], longest: int) -> Any:
    from nemo_rpo.megatron.batch.responses import IGNORED, ResponseTokens
    from nemo_rpo.megatron.step.forward import ModelInput

    tokens = torch.zeros(len(texts), longest, dtype=torch.long)
    labels = torch.full_like(tokens, IGNORED)
    for row, text in enumerate(texts):
        start, end = len(text.prompt), len(text.prompt) + len(text.response)
        tokens[row, :end] = torch.from_numpy(np.concatenate((text.prompt, text.response)).astype(np.int64))
        labels[row, start:end] = tokens[row, start:end]
    return ModelInput(tokens, torch.arange(longest).expand_as(tokens), ResponseTokens.of_labels(labels))


def _check_head(weights: Path, outputs: dict[str, int]) -> None:
    from nemo_rpo.megatron.checkpoint.huggingface.reward_head_file import saved_outputs
    from nemo_rpo.megatron.checkpoint.run_file import RUN_FILE, read_run

    ours = (weights / RUN_FILE).is_file()
    saved = read_run(weights).get("reward_outputs", {}) if ours else saved_outputs(weights)
    if lacking := sorted(name for name, width in outputs.items() if saved.get(name) != width):
        has = ", ".join(f"{name} of width {width}" for name, width in saved.items()) or "none"
        raise CheckpointError(
            f"{weights} has no head that gives '{lacking[0]}' of width {outputs[lacking[0]]} (it has {has}): name a "
            "reward model, with the loss and the model.rpo.embedding_width that it was trained with"
        )


def _records(
    rows: Sequence[PromptResponses],
    tokens: list[_Tokens | None],
    found: list[np.ndarray | None],
    loss: PreferenceLoss,
    players: Sequence[str],
) -> Iterator[dict[str, Any]]:
    place = 0
    for row in rows:
        of_row = found[place : place + len(row.responses)]
        for k, columns in enumerate(_of_row(of_row, loss, players)):
            length = tokens[place + k]
            where = {"file": row.file, "row": row.row, "name": row.name, "response": k}
            yield {**where, "tokens": None if length is None else len(length.response), **columns}
        place += len(row.responses)


def _of_row(of_row: Sequence[np.ndarray | None], loss: PreferenceLoss, players: Sequence[str]) -> list[dict[str, Any]]:
    """What is said of each response of one prompt."""
    if "score" in loss.needs:
        return [{"score": None if x is None else float(x[0])} for x in of_row]
    if "scores" in loss.needs:
        return [{"scores": None if x is None else [float(v) for v in x]} for x in of_row]
    if "coefficients" in loss.needs:  # a width of ties may follow them
        named = [None if x is None else dict(zip(players, map(float, x), strict=False)) for x in of_row]
        return [{"strengths": strengths} for strengths in named]
    gated = "gate" in loss.needs
    said = []
    for i, x in enumerate(of_row):
        others = [y for j, y in enumerate(of_row) if j != i and y is not None]
        columns: dict[str, Any] = {"score": None, "embedding": None, **({"gate": None} if gated else {})}
        if x is not None:
            v = x[: len(x) * 2 // 3] if gated else x
            columns |= {"embedding": v.tolist()} | ({"gate": x[len(v) :].tolist()} if gated else {})
            if others:
                columns["score"] = float(np.mean([_log_odds(x, y, loss, gated) for y in others]))
        said.append(columns)
    return said


def _log_odds(x: np.ndarray, y: np.ndarray, loss: PreferenceLoss, gated: bool) -> float:
    """s(x ≻ y)/τ, by the loss itself."""
    width = len(x) * 2 // 3 if gated else len(x)
    one, other = (torch.from_numpy(of[:width]).unsqueeze(0) for of in (x, y))
    gate = {"gate": torch.from_numpy(x[width:]).unsqueeze(0)} if gated else {}
    pair = PairLogprobs(None, None, response_columns={"embedding": (one, other)}, pair_columns=gate)
    return loss.terms(pair).delta.item()
