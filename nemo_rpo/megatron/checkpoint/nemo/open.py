"""Finds out in which of NeMo's three forms an archive holds its weights."""

from __future__ import annotations

from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.nemo import torch_dist, zarr
from nemo_rpo.megatron.checkpoint.nemo.archive import NemoArchive
from nemo_rpo.megatron.checkpoint.nemo.per_rank import FILE, PerRankWeights
from nemo_rpo.megatron.checkpoint.nemo.weights import NemoWeights


def open_weights(archive: NemoArchive, gated: bool) -> NemoWeights:
    """The weights in ``archive``; ``gated`` as :class:`PerRankWeights` asks. :class:`CheckpointError` if none."""
    if torch_dist.INDEX in archive.names:
        return torch_dist.TorchDistWeights(archive)
    if any(name.startswith(f"{torch_dist.FOLDER}/") and name.endswith("/.zarray") for name in archive.names):
        return zarr.ZarrWeights(archive)
    if any(name.rpartition("/")[2] == FILE for name in archive.names):
        return PerRankWeights(archive, gated)
    raise CheckpointError(
        f"{archive.path} has no weights: neither {torch_dist.FOLDER}/ (torch_dist or zarr) nor {FILE}; save it again"
    )
