"""Weights of a ``.nemo`` → the parameters of this rank's GPTModel chunks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.megatron.checkpoint.huggingface.importer import fill_chunks
from nemo_rpo.megatron.checkpoint.nemo.archive import NemoArchive
from nemo_rpo.megatron.checkpoint.nemo.mapping import nemo_tensors
from nemo_rpo.megatron.checkpoint.nemo.open import open_weights


def load_nemo_weights(chunks: Sequence[torch.nn.Module], path: str | Path, architecture: GPTArchitecture) -> None:
    """Fills ``chunks`` (GPTModel, bare or wrapped) in place from the ``.nemo`` at ``path``, cast to their dtype.

    The file is not unpacked; each rank reads only the stored pieces that its own slices lie in, one at a time (of the
    oldest form, one file a rank, whole files). Rows that pad the vocabulary beyond NeMo's become zero. Issues no
    collective.

    Raises :class:`CheckpointError` for a missing, damaged or misshapen tensor, on every rank alike, and
    :class:`ConfigError` if ``chunks`` were built from another architecture.
    """
    with NemoArchive(path) as archive:
        weights = open_weights(archive, gated=architecture.activation == "swiglu")
        fill_chunks(chunks, nemo_tensors(architecture), weights, architecture.share_embeddings_and_output_weights)
