"""Saving and loading of a run's tensors with Megatron's ``dist_checkpointing``: weights, optimizer, schedule, EM state,
random state.

A checkpoint folder holds the distributed checkpoint, ``run.json`` (where the run stood; everything a person may want to
read) and ``annotators.jsonl``. Weights and optimizer are saved in global coordinates, so another tensor-, pipeline- or
data-parallel layout can load them.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import __version__ as megatron_version
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint.api import CheckpointException

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.distopt_padding import padding_kept
from nemo_rpo.megatron.model import MegatronGPTRPOModel
from nemo_rpo.megatron.network.reward_head import REWARD_HEAD, head_of

RUN_FILE = "run.json"
_INDEX_FILES = (".metadata", "metadata.json")
# Optimizer state in the coordinates of the weights: the one format of the distributed optimizer that every layout
# reads.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def _unwrapped(chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """The GPTModels inside data-parallel and precision wrappers."""
    unwrapped = []
    for chunk in chunks:
        while hasattr(chunk, "module"):
            chunk = chunk.module
        unwrapped.append(chunk)
    return unwrapped


def _chunk_names(chunks: list[torch.nn.Module]) -> list[str]:
    return ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]


def _model_state(chunks: list[torch.nn.Module]) -> dict[str, Any]:
    chunks = _unwrapped(chunks)
    return {name: chunk.sharded_state_dict() for name, chunk in zip(_chunk_names(chunks), chunks, strict=True)}


def _load_model_state(chunks: list[torch.nn.Module], state: dict[str, Any]) -> None:
    chunks = _unwrapped(chunks)
    for name, chunk in zip(_chunk_names(chunks), chunks, strict=True):
        chunk.load_state_dict(state[name])


def _layout() -> dict[str, int]:
    return {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "data_parallel_size": parallel_state.get_data_parallel_world_size(),
    }


def _random_state() -> ShardedObject:
    """This rank's random state, as one cell of a (pipeline, tensor, data) grid; it can only be read back under the same
    grid. Context-parallel ranks draw the same numbers.
    """
    state = {
        "cpu": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    layout = _layout()
    shape = (
        layout["pipeline_model_parallel_size"],
        layout["tensor_model_parallel_size"],
        layout["data_parallel_size"],
    )
    rank = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
    )
    return ShardedObject("random_state", state, shape, rank, replica_id=parallel_state.get_context_parallel_rank())


def save_state(folder: Path, model: MegatronGPTRPOModel, run: dict[str, Any]) -> None:
    """Writes the distributed checkpoint and ``run.json`` into the existing, empty ``folder``.

    Collective over the world; the caller renames the folder when it is whole.

    Raises:
        CheckpointError: it cannot be written. On every rank, unless rank 0 fails alone with one of the small files.
    """
    state = _model_state(model.model)
    with padding_kept(model.optimizer):
        state["optimizer"] = model.optimizer.sharded_state_dict(state, metadata=_METADATA)
    state["scheduler"] = model.scheduler.state_dict()
    state["em"] = model.em.state_dict()
    state["random_state"] = _random_state()
    run = {
        **run,
        "architecture": model.architecture.to_dict(),
        "layout": _layout(),
        "reward_outputs": dict(model.needs.reward_outputs),
        "optimizer": model.cfg.model.optim.name,
        "megatron_core": megatron_version,
    }
    try:
        dist_checkpointing.save(state, str(folder))
        if torch.distributed.get_rank() == 0:
            (folder / RUN_FILE).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    except (OSError, CheckpointException) as exc:
        raise CheckpointError(
            f"the checkpoint {folder} cannot be written ({_cause(exc)}): see that its disk has room and start again"
        ) from exc


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json`` of a checkpoint. Raises :class:`CheckpointError` if the folder is no checkpoint of this package."""
    try:
        return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(
            f"{folder} is not a checkpoint of nemo_rpo ({exc}); name a folder that holds {RUN_FILE}"
        ) from exc


def _cause(exc: BaseException) -> str:
    """What went wrong, in a line; of what torch gathered from the ranks, the first."""
    if isinstance(exc, CheckpointException):
        failures = [failure for failure, _ in exc.failures.values()]
        return _cause(failures[0]) if failures else "on another rank"
    if isinstance(exc.__context__, OSError):  # Megatron stumbles over its own words on a file that is not there
        return _cause(exc.__context__)
    sentence = " ".join(str(exc).split()).split(". ")[0]
    return f"{type(exc).__name__}: {sentence}" if sentence else type(exc).__name__


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turns what torch and Megatron meet in damaged or foreign files into a :class:`CheckpointError`."""
    damage = (CheckpointException, CheckpointingException, OSError, EOFError, pickle.UnpicklingError)
    foreign = (AssertionError, AttributeError, LookupError, TypeError, ValueError)
    try:
        for name in _INDEX_FILES:  # torch would print a traceback of its own on the way
            (folder / name).stat()
        yield
    except (*damage, *foreign) as exc:
        failure = exc
    except RuntimeError as exc:
        if "PytorchStreamReader" not in str(exc):  # torch.load's own; any other is no matter of files
            raise
        failure = exc
    else:
        return
    written_with = read_run(folder).get("megatron_core", "unknown")
    versions = f" It was written with Megatron-Core {written_with}, this is {megatron_version}."
    raise CheckpointError(
        f"the checkpoint {folder} cannot be read ({_cause(failure)}): restore its files, or move it away to start from "
        f"another one.{versions if written_with != megatron_version else ''}"
    ) from failure


def load_state(folder: Path, model: MegatronGPTRPOModel) -> None:
    """Restores everything :func:`save_state` wrote, under any layout. Collective over the world.

    The random state comes back only under the layout that wrote it; without dropout nothing draws from it. Annotators
    that joined since start at ``eta_init``.

    Raises:
        CheckpointError: the checkpoint was written with the other kind of optimizer, is damaged, or of a Megatron-Core
            that this one cannot read.
    """
    run = read_run(folder)
    if run["optimizer"] != model.cfg.model.optim.name:
        raise CheckpointError(
            f"{folder} was written with model.optim.name={run['optimizer']}; resume with the same, not "
            f"{model.cfg.model.optim.name}"
        )
    state = _model_state(model.model)
    with padding_kept(model.optimizer):
        state["optimizer"] = model.optimizer.sharded_state_dict(state, is_loading=True, metadata=_METADATA)
    if run["layout"] == _layout():
        state["random_state"] = _random_state()
    with _reading(folder):
        state = dist_checkpointing.load(state, str(folder))
    _load_model_state(model.model, state)
    model.optimizer.load_state_dict(state["optimizer"])
    model.scheduler.load_state_dict(state["scheduler"])
    model.em.load_state_dict(_with_newcomers(state["em"], model.em.state_dict()))
    if "random_state" in state:
        torch.set_rng_state(state["random_state"]["cpu"])
        torch.cuda.set_rng_state(state["random_state"]["device"])
        tensor_parallel.get_cuda_rng_tracker().set_states(state["random_state"]["tracker"])


def _with_newcomers(saved: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """The saved EM state, continued with the starting values of annotators whose index lies beyond it."""
    known = saved["eta"].numel()
    joined = {name: torch.cat((saved[name], fresh[name][known:])) for name in ("eta", "label_counts", "right_sums")}
    return {**saved, **joined}


def load_weights(folder: Path, chunks: list[torch.nn.Module]) -> None:
    """Reads only the weights of a checkpoint into model chunks that are not wrapped for data parallelism yet. What the
    checkpoint lacks of a reward head stays as it is.

    Collective over the world. Raises :class:`CheckpointError` if it cannot be read.
    """
    state, fresh = _model_state(chunks), {}
    head = head_of(chunks)
    if head is not None:
        saved, last = read_run(folder).get("reward_outputs", {}), _chunk_names(chunks)[-1]
        unlike = [name for name, width in head.outputs.items() if saved.get(name) != width]
        keys = [key for key in state[last] for name in unlike if key.startswith(f"{REWARD_HEAD}.{name}.")]
        fresh = {key: state[last].pop(key).data for key in keys}
    with _reading(folder):
        state = dist_checkpointing.load(state, str(folder))
    if fresh:
        state[last] |= fresh
    _load_model_state(chunks, state)


def architecture_of(folder: Path) -> GPTArchitecture:
    """The architecture of a checkpoint."""
    return GPTArchitecture.from_dict(read_run(folder)["architecture"])
