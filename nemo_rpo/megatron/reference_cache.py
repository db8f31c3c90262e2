"""Reference log-probs computed once and kept, keyed by what each pair holds, never by where it stands.

A Parquet file a split: ``pair_id``, ``content_hash`` (16 bytes over prompt, chosen and rejected ids),
``ref_chosen_logps``, ``ref_rejected_logps`` (fp32, summed over the response); its metadata names the weights and the
precision they were computed with. Reordered, filtered or differently batched data finds its log-probs again; changed
text does not, and is an error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_rpo.data.cache import PreferenceCache
from nemo_rpo.errors import ReferencePolicyError, missing_extra
from nemo_rpo.megatron.forward import REFERENCE_KEYS
from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel

_PREFIX = b"nemo_rpo."


class CachedReference:
    """Log-probs of the reference for every pair of one data set, fp32 ``[n]`` each, in the order of ``cache``."""

    def __init__(self, chosen: np.ndarray, rejected: np.ndarray) -> None:
        self.chosen, self.rejected = torch.from_numpy(chosen), torch.from_numpy(rejected)

    def add_ref_policy_logprobs(self, batch: Batch) -> None:
        """Puts the pairs' log-probs into the batch, in place. No collective."""
        for micro_batch in batch:
            rows = micro_batch["pair_index"].clamp(min=0)  # rows that only fill up a batch have index -1
            micro_batch.update(zip(REFERENCE_KEYS, (self.chosen[rows], self.rejected[rows]), strict=True))


# Spread over each file: fine-tuned copies of a model often share its beginning, the header and frozen embeddings.
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


def weights_fingerprint(path: str | None) -> str:
    """Tells weights apart without reading them whole: names and sizes of the files under ``path``, and of each 64
    samples of 64 KiB at equal distances (files up to 4 MiB whole).
    """
    digest = hashlib.sha256()
    for file in sorted(Path(path).rglob("*")) if path else []:
        if file.suffix in (".safetensors", ".bin", ".distcp", ".json"):
            size = file.stat().st_size
            digest.update(f"{file.relative_to(path)} {size}".encode())
            with file.open("rb") as opened:
                for start in range(0, size, max(_SAMPLE_BYTES, -(-size // _SAMPLES))):
                    opened.seek(start)
                    digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()


@torch.no_grad()
def compute(model: MegatronGPTRPOModel, batches: Iterable[Batch], pairs: int) -> CachedReference:
    """Log-probs under the model's present weights, which must be the reference's, of all ``pairs`` that ``batches``
    hold once.

    Draws no random number. Collectives: the model's forward ones, and one all-reduce of 8 bytes a pair over the world;
    every rank ends with all of them.
    """
    found = torch.zeros(2, pairs, device=model.device)
    with model.evaluating():
        for batch in batches:
            for micro_batch, logprobs in zip(batch, model.get_logprob_batch(batch), strict=False):
                if (
                    parallel_state.get_tensor_model_parallel_rank() == 0
                ):  # the other tensor-parallel ranks hold the same
                    valid = micro_batch["valid"].to(model.device)
                    rows = micro_batch["pair_index"].to(model.device)[valid]
                    found[:, rows] = torch.stack((logprobs["chosen"], logprobs["rejected"]))[:, valid]
    dist.all_reduce(found)
    chosen, rejected = found.cpu().numpy()
    return CachedReference(chosen, rejected)


def write(path: Path, reference: CachedReference, cache: PreferenceCache, made_with: dict[str, str]) -> None:
    """Writes the Parquet file under a temporary name and renames it. Local; call it on one rank."""
    pa, pq = _pyarrow()
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "pair_id": [cache.pair_id(i) for i in range(len(cache))],
            "content_hash": pa.array([row.tobytes() for row in cache.content_hash], pa.binary(16)),
            "ref_chosen_logps": reference.chosen.numpy(),
            "ref_rejected_logps": reference.rejected.numpy(),
        }
    )
    metadata = {_PREFIX + name.encode(): value.encode() for name, value in made_with.items()}
    writing = path.with_name(f".writing-{path.name}")
    pq.write_table(table.replace_schema_metadata(metadata), writing)
    os.replace(writing, path)


def read(path: Path, cache: PreferenceCache, made_with: dict[str, str]) -> CachedReference:
    """The log-probs of every pair of ``cache``.

    Raises:
        ReferencePolicyError: damaged file; computed with other weights or precision; a pair of the data is not in it.
    """
    pa, pq = _pyarrow()
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as exc:
        raise ReferencePolicyError(f"{path}: cannot be read ({exc}); delete it to compute the reference again") from exc
    saved = {
        name.removeprefix(_PREFIX).decode(): value.decode() for name, value in (table.schema.metadata or {}).items()
    }
    for name, value in made_with.items():
        if saved.get(name) != value:
            raise ReferencePolicyError(
                f"{path}: computed with {name} {saved.get(name)}, this run has {value}; delete it or set "
                "model.rpo.reference_cache"
            )
    known = np.frombuffer(b"".join(table["content_hash"].to_pylist()), dtype="V16")
    wanted = np.ascontiguousarray(cache.content_hash).view("V16").reshape(-1)
    order = np.argsort(known, kind="stable")
    rows = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
    missing = np.flatnonzero(known[rows] != wanted)
    if missing.size:
        first = int(missing[0])
        raise ReferencePolicyError(
            f"{path}: has no log-probs for pair '{cache.pair_id(first)}' ({cache.where(first)}; {missing.size} such "
            "pairs); delete it to compute them again"
        )
    return CachedReference(table["ref_chosen_logps"].to_numpy()[rows], table["ref_rejected_logps"].to_numpy()[rows])


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as exc:
        raise missing_extra("pyarrow", "mcore") from exc
    return pyarrow, pyarrow.parquet
