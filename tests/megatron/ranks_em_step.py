"""Each rank of ``test_em_step.py``: steps the engine, breaks some of the steps, and writes down what it saw."""

# ruff: noqa: E402 (what makes Megatron-Core run on a CPU comes before its import)
from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from nemo_rpo.megatron import cpu

cpu.install()

import torch
import torch.distributed as dist
from engine import Engine, engine, places
from megatron.core import parallel_state

from nemo_rpo.em import BufferedReliability, EMSettings, Estimate, MarginBuffer, Votes, build_estimator, estimate
from nemo_rpo.em.em_settings import LabelModelInTraining
from nemo_rpo.em.label_model import FlatVotes, VoteColumns
from nemo_rpo.em.label_model.of_run.training_crowd import Crowd
from nemo_rpo.errors import DataError, TrainingError
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
from nemo_rpo.megatron.step.em import COLLECTIVES, check_ranks_agree
from nemo_rpo.megatron.step.forward import REFERENCE_KEYS
from nemo_rpo.training.process.rank0 import once_a_node
from nemo_rpo.training.sweep import margins, sweep_reliabilities

STEPS = 3
POISONED_TOKEN = 19  # "plain0": in some prompts and answers of every batch


def em_state(model: MegatronGPTRPOModel) -> dict[str, Any]:
    em = model.em
    return {
        "eta": em.eta.tolist(),
        "label_counts": em.label_counts.tolist(),
        "right_sums": em.right_sums.tolist(),
        "step": em.step,
    }


def everything(model: MegatronGPTRPOModel) -> list[torch.Tensor]:
    """Copies of all that a skipped step must not touch: weights, moments, EM."""
    found = [parameter.detach().clone() for chunk in model.model for parameter in chunk.parameters()]
    for part in getattr(model.optimizer, "chained_optimizers", [model.optimizer]):
        for state in part.optimizer.state.values():
            found += [value.clone() for value in state.values() if isinstance(value, torch.Tensor)]
    return [*found, *(value.clone() for value in model.em.state_dict().values() if isinstance(value, torch.Tensor))]


@contextlib.contextmanager
def gradient_of(model: MegatronGPTRPOModel, value: float) -> Iterator[None]:
    """Inside the block one parameter's gradient is ``value`` in the backward pass of the last rank, and of no other."""
    hooks = []
    if dist.get_rank() == dist.get_world_size() - 1:
        # Of a norm's weight the tensor-parallel ranks hold equal copies; Megatron's gradient norm looks at the first.
        parameter = next(p for p in model.model[-1].parameters() if getattr(p, "tensor_model_parallel", False))
        hooks.append(parameter.register_hook(lambda gradient: torch.full_like(gradient, value)))
    yield
    for hook in hooks:
        hook.remove()


@contextlib.contextmanager
def nan_embedding(model: MegatronGPTRPOModel) -> Iterator[None]:
    """Inside the block one token's embedding is NaN on the first stage, and so is every log-prob that it reaches."""
    chunk = model.model[0]
    while hasattr(chunk, "module"):
        chunk = chunk.module
    rows, original = None, None
    if parallel_state.is_pipeline_first_stage(ignore_virtual=True):
        rows = chunk.embedding.word_embeddings.weight.data
        row = POISONED_TOKEN - parallel_state.get_tensor_model_parallel_rank() * len(rows)
        if 0 <= row < len(rows):
            original = rows[row].clone()
            rows[row] = torch.nan
    yield
    if original is not None:
        rows[row] = original


def broken_step(run: Engine, batch: Batch, breaking: Callable[[], contextlib.AbstractContextManager]) -> dict[str, Any]:
    before = everything(run.model)
    with breaking():
        metrics, outcome = run.train_step(batch)
    after = everything(run.model)
    same = len(before) == len(after) and all(map(torch.equal, before, after))
    return {
        "updated": outcome.updated,
        "grad_norm": outcome.grad_norm,
        "loss": metrics["loss"],
        "unchanged": same,
        "pending": bool(run.model.em.pending.any()),
    }


def pairs_seen(run: Engine, split: str) -> dict[int, dict[str, Any]]:
    """Every valid pair of a split that this rank has log-probs of, by its index in the data."""
    found: dict[int, dict[str, Any]] = {}
    for batch in run.batches(split):
        for micro_batch, logprobs in zip(batch, run.model.get_logprob_batch(batch), strict=False):
            for i in micro_batch["valid"].nonzero().flatten().tolist():
                index = int(micro_batch["pair_index"][i])
                assert index not in found
                found[index] = {
                    "policy": [logprobs["chosen"][i].item(), logprobs["rejected"][i].item()],
                    "reference": [micro_batch[key][i].item() for key in REFERENCE_KEYS],
                    "annotator": micro_batch["annotator"][i].tolist(),
                    "sign": micro_batch["sign"][i].tolist(),
                }
    return found


def validation(run: Engine) -> dict[str, Any]:
    """One pass over the validation pairs: what the metrics say, what the pairs say, and whether the EM noticed."""
    model, before = run.model, em_state(run.model)
    model.prepare_for_validation_step()
    for batch in run.batches("validation"):
        model.validation_forward(batch)
    metrics = model.finish_validation_step()
    _, again = model.get_loss_and_metrics(run.batch(0, "validation"), forward_only=True)
    noticed = em_state(model) != before or bool(model.em.pending.any())
    return {"metrics": metrics, "pairs": pairs_seen(run, "validation"), "em noticed": noticed, "first batch": again}


def sweep(run: Engine) -> dict[str, Any]:
    """What this rank brings to the closing EM, and what comes of it."""
    start = run.model.em.eta.tolist()
    with run.model.evaluating():
        delta, votes, _ = margins(run.model, run.batches("sweep"))
    found = sweep_reliabilities(run.model, run.batches("sweep")).result
    return {
        "start": start,
        "delta": delta.tolist(),
        "annotator": votes.annotator.tolist(),
        "sign": votes.sign.tolist(),
        "eta": found.eta.tolist(),
        "counts": found.counts.tolist(),
        "iterations": found.iterations,
        "log_likelihood": float(found.log_likelihood),
        "model's eta": run.model.em.eta.tolist(),
    }


def shared_work() -> dict[str, Any]:
    """What the first rank of a node finds out for the others, and how often it was found out."""
    done: list[int] = []

    def work() -> int:
        done.append(dist.get_rank())
        return 42 + dist.get_rank()

    def fail() -> None:
        raise DataError("not here")

    found = once_a_node(work)
    try:
        once_a_node(fail)
    except DataError as exc:
        return {"done": done, "found": found, "said": str(exc)}
    return {"done": done, "found": found, "said": ""}


def agreement(run: Engine) -> dict[str, Any]:
    """A refit in which the last rank alone rounds otherwise, and what is said of a rank whose η is its own."""
    generator, annotators = torch.Generator().manual_seed(0), run.model.em.num_annotators
    pairs, last = 2000 * parallel.data_parallel_size(), dist.get_rank() == dist.get_world_size() - 1
    margin = torch.randn(pairs, generator=generator) * 2
    # Labels as the margins have it, in their scale: else the policy would have no voice, and η would stay.
    sign = torch.where(torch.rand(pairs, generator=generator) < margin.sigmoid(), 1.0, -1.0)
    annotator = torch.randint(annotators, (pairs,), generator=generator)
    buffer = MarginBuffer(pairs, parallel.data_parallel_rank(), parallel.data_parallel_size())
    votes = Votes(annotator[buffer.block].unsqueeze(-1), sign[buffer.block].unsqueeze(-1))
    em = BufferedReliability(annotators, EMSettings(estimator="buffer"), buffer, votes, COLLECTIVES)
    buffer.load(margin)

    def off_by_a_little(*arguments: Any) -> Estimate:
        found = estimate(*arguments)
        return found._replace(eta=found.eta + 1e-9, prior=(found.prior[0] + 1e-9, found.prior[1])) if last else found

    with mock.patch("nemo_rpo.em.buffer.estimate", off_by_a_little):
        found = em.refit()
    check_ranks_agree(em)
    refitted = {"eta": em.eta.tolist(), "prior": found.prior, "moved": found.sweep is not None}
    if last:
        em.replace(em.eta + 1e-9)
    try:
        check_ranks_agree(em)
    except TrainingError as exc:
        return {**refitted, "said": str(exc)}
    return {**refitted, "said": ""}


def label_model() -> dict[str, Any]:
    """Refits of a crowd of which half follow the order shown, with the collectives of this layout."""
    generator, annotators, pairs = torch.Generator().manual_seed(1), 8, 301
    better = torch.where(torch.rand(pairs, 1, generator=generator) < 0.5, 1, -1)
    shown = torch.where(torch.rand(pairs, 1, generator=generator) < 0.5, 1, -1).expand(-1, annotators)
    right = torch.rand(pairs, annotators, generator=generator) < 0.8
    follows = (torch.arange(annotators) < 4) & (torch.rand(pairs, annotators, generator=generator) < 0.7)
    sign = torch.where(follows, shown, torch.where(right, better, -better))
    votes = Votes(torch.arange(annotators).expand(pairs, -1), sign)
    em = build_estimator(
        EMSettings(label_model=LabelModelInTraining(dependence=False)),
        annotators,
        pairs,
        lambda block: Votes(votes.annotator[block], sign[block]),
        parallel.data_parallel_rank(),
        parallel.data_parallel_size(),
        COLLECTIVES,
        crowd_of=lambda: Crowd(FlatVotes.of(votes), VoteColumns(shown_first=shown.flatten())),
    )
    em.buffer.load(0.5 * better.squeeze(-1) + torch.randn(pairs, generator=generator))
    for _ in range(2):
        em.refit()
    w = em.posterior(torch.zeros(pairs), votes, torch.arange(pairs))
    return {
        "names": em.label_model.now.names,
        "eta": em.eta.tolist(),
        "evidence": em.pair_evidence.tolist(),
        "right": ((w > 0.5) == (better.squeeze(-1) > 0)).double().mean().item(),
        "by votes": ((sign.sum(-1) > 0) == (better.squeeze(-1) > 0)).double().mean().item(),
    }


def experiment(overrides: list[str]) -> dict[str, Any]:
    with engine(overrides) as run:
        found: dict[str, Any] = {
            "first replica of the last stage": parallel.is_last_stage()
            and parallel_state.get_tensor_model_parallel_rank() == 0
        }
        groups = dist.group.WORLD, parallel_state.get_data_parallel_group()
        cpu_backends = [group._get_backend(torch.device("cpu")) for group in groups]
        found["time-outs"] = [backend.options._timeout.total_seconds() for backend in cpu_backends]
        found["steps"] = []
        for step in range(STEPS):
            metrics, outcome = run.train_step(run.batch(step))
            assert outcome.updated
            found["steps"].append({"metrics": metrics, **em_state(run.model)})
        batch = run.batch(STEPS)
        found["nan gradient"] = broken_step(run, batch, lambda: gradient_of(run.model, torch.nan))
        found["infinite gradient"] = broken_step(run, batch, lambda: gradient_of(run.model, torch.inf))
        found["nan log-prob"] = broken_step(run, batch, lambda: nan_embedding(run.model))
        found["after them"] = broken_step(run, batch, contextlib.nullcontext)
        found["validation"] = validation(run)
        found["sweep"] = sweep(run)
        found["agreement"] = agreement(run)
        found["label model"] = label_model()
        found["shared work"] = shared_work()
    return found


def main() -> None:
    """``argv``: the world's folder, the folder to write ``NAME.RANK.json`` to, a JSON object of name → overrides."""
    world, out, layouts = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    for name, overrides in layouts.items():
        files = [*places(world, out / "run"), f"model.data.data_prefix.validation={world / 'validation.jsonl'}"]
        rank = int(os.environ["RANK"])
        (out / f"{name}.{rank}.json").write_text(json.dumps(experiment([*files, *overrides])))


if __name__ == "__main__":
    main()
