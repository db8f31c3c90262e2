"""A run's tensors as a distributed checkpoint, which all ranks write (:mod:`nemo_rpo.megatron.checkpoint.writer`) and
read, under whatever layout.

Its folder holds

    __<rank>_<n>.distcp   tensors: weights, optimizer, EM and random state, each rank its part
    .metadata             torch's index of them (:mod:`nemo_rpo.megatron.checkpoint.index`)
    metadata.json         Megatron-Core's name of the format
    run.json              where the run stood, and the digests (:mod:`nemo_rpo.megatron.checkpoint.run_file`)
    annotators.jsonl

Nothing but tensors, JSON and the index is ever read from it, and no code run.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import __version__ as megatron_version
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from torch.distributed.checkpoint.api import CheckpointException

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.digests import damage
from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.index import Index, read_index
from nemo_rpo.megatron.checkpoint.optimizer_parts import load_optimizer_state
from nemo_rpo.megatron.checkpoint.run_file import check_format, or_another, read_run
from nemo_rpo.megatron.checkpoint.run_tensors import layout, load_em_state, random_state, restore_random_state
from nemo_rpo.megatron.checkpoint.weights import State, base_state, chunk_names, load_model_state, model_state
from nemo_rpo.megatron.checkpoint.writer import cause
from nemo_rpo.megatron.model import MegatronGPTRPOModel
from nemo_rpo.megatron.network.reward_head import REWARD_HEAD, head_of


def check_files(folder: Path, run: dict[str, Any]) -> None:
    """Compares every file of a checkpoint with its digest in ``run``, its ``run.json``; one without digests passes.

    Each rank reads a share of the files. One short object a rank is gathered over the world.

    Raises:
        CheckpointError: on every rank, with the name of a file that is not as it was written.
    """
    files = run.get("files", {})
    own = sorted(files)[dist.get_rank() :: dist.get_world_size()]
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, damage(folder, {name: files[name] for name in own}))
    first = next((what for what in found if what is not None), None)
    if first is not None:
        raise CheckpointError(f"{first}: {or_another(folder)}")


def load_state(folder: Path, model: MegatronGPTRPOModel, run: dict[str, Any]) -> None:
    """Restores everything that :class:`nemo_rpo.megatron.checkpoint.writer.StateWriter` wrote, under any layout;
    ``run`` is its ``run.json``. Collective over the world.

    The random state comes back only under the layout that wrote it; without dropout nothing draws from it. Annotators
    that joined since start at ``eta_init``.

    Raises:
        CheckpointError: the checkpoint is of another version of this package, is damaged, or of a Megatron-Core that
            this one cannot read.
    """
    check_format(folder, run)
    index = read_index(folder)
    read = partial(_read, folder, index)
    with _reading(folder, run):
        load_model_state(model.model, read(model_state(model.model)))
        weights = model_state(model.model)
        load_optimizer_state(model.optimizer, weights, run["optimizer_steps"], index, read, model.device)
        model.scheduler.load_state_dict(run["scheduler"])
        load_em_state(model.em, index, read)
        if run["layout"] == layout():
            random = random_state()
            read(random)
            restore_random_state(random)


def load_weights(folder: Path, chunks: list[torch.nn.Module]) -> None:
    """Reads only the weights of a checkpoint, of any version of this package, into model chunks that are not wrapped
    for data parallelism yet. What the checkpoint lacks of a reward head stays as it is.

    Collective over the world. Raises :class:`CheckpointError` if it cannot be read, or a file is not as it was written.
    """
    state, fresh, run = base_state(chunks), {}, read_run(folder)
    check_files(folder, run)
    head = head_of(chunks)
    if head is not None:
        saved, last = run.get("reward_outputs", {}), chunk_names(chunks)[-1]
        unlike = [name for name, width in head.outputs.items() if saved.get(name) != width]
        keys = [key for key in state[last] for name in unlike if key.startswith(f"{REWARD_HEAD}.{name}.")]
        fresh = {key: state[last].pop(key).data for key in keys}
    with _reading(folder, run):
        state = _read(folder, read_index(folder), state)
    if fresh:
        state[last] |= fresh
    load_model_state(chunks, state)


def load_adapters(folder: Path, chunks: list[torch.nn.Module]) -> None:
    """Reads the adapters of a checkpoint into model chunks that have the same ones, see
    :mod:`nemo_rpo.megatron.checkpoint.adapter.description`. Collective over the world.

    Raises :class:`CheckpointError` if it cannot be read, or a file is not as it was written.
    """
    run = read_run(folder)
    check_files(folder, run)
    with _reading(folder, run):
        load_model_state(chunks, _read(folder, read_index(folder), model_state(chunks)))


def architecture_of(folder: Path) -> GPTArchitecture:
    """The architecture of a checkpoint."""
    return GPTArchitecture.from_dict(read_run(folder)["architecture"])


def _read(folder: Path, index: Index, state: State) -> State:
    """Reads the tensors of ``state``, and nothing else, into their places. Collective over the world."""
    sharded, _, factories = load_preprocess(state)
    for tensor in _tensors(sharded):
        if tensor.key not in index:
            raise CheckpointError(
                f"the checkpoint {folder} has no tensor {tensor.key}: it is damaged, or of another version of this "
                "package; move it away to go on from another one"
            )
    return apply_factory_merges(TorchDistLoadShardedStrategy().load(sharded, str(folder)), factories)


def _tensors(state: Any) -> Iterator[ShardedTensor]:
    for entry in state.values() if isinstance(state, dict) else state:
        if isinstance(entry, dict | list):
            yield from _tensors(entry)
        else:
            yield entry


@contextlib.contextmanager
def _reading(folder: Path, run: dict[str, Any]) -> Iterator[None]:
    """Turns what torch and Megatron meet in damaged or foreign files into a :class:`CheckpointError`."""
    damaged = (CheckpointException, CheckpointingException, OSError, EOFError, pickle.UnpicklingError)
    foreign = (AssertionError, AttributeError, LookupError, TypeError, ValueError)
    try:
        yield
        return
    except CheckpointError:
        raise
    except (*damaged, *foreign) as exc:
        failure = exc
    except RuntimeError as exc:
        if "PytorchStreamReader" not in str(exc):  # torch.load's own; any other is no matter of files
            raise
        failure = exc
    written_with = run.get("megatron_core", "unknown")
    versions = f" It was written with Megatron-Core {written_with}, this is {megatron_version}."
    raise CheckpointError(
        f"the checkpoint {folder} cannot be read ({cause(failure)}): restore its files, or move it away to start from "
        f"another one.{versions if written_with != megatron_version else ''}"
    ) from failure
