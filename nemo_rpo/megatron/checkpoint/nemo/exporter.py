"""The parameters of Megatron's GPTModel, spread over tensor and pipeline ranks → a ``.nemo``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.megatron.checkpoint.huggingface.exporter import export_tensors
from nemo_rpo.megatron.checkpoint.nemo.config import exported_config, read_nemo_config
from nemo_rpo.megatron.checkpoint.nemo.mapping import nemo_tensors
from nemo_rpo.megatron.checkpoint.nemo.writer import NemoWriter


def export_nemo(
    chunks: Sequence[torch.nn.Module],
    architecture: GPTArchitecture,
    path: str | Path,
    tokenizer: Mapping[str, Any] = MappingProxyType({}),
    source: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the model as the file ``path``, which NeMo's ``MegatronGPTModel`` restores under every layout.

    ``model_config.yaml`` and the tokenizer's files are those of ``source``, the ``.nemo`` that the model came from;
    with None they are made of ``architecture`` and have ``tokenizer`` for ``model.tokenizer``. Rows that pad the
    vocabulary beyond ``architecture.vocab_size`` are left out, so that NeMo's softmax is over the tokens that the
    engine's is over.

    Collectives, memory and errors are those of :func:`nemo_rpo.megatron.checkpoint.huggingface.exporter.export_hf`.
    """
    tensors = nemo_tensors(architecture)

    def started(stored: torch.dtype) -> tuple[Callable[[], NemoWriter], Mapping[str, Any]]:
        described = None if source is None else read_nemo_config(source)
        precision = "bf16" if stored is torch.bfloat16 else "32"
        config = exported_config(architecture, described, tokenizer, precision)
        return partial(NemoWriter, path, architecture.num_layers, source), config

    export_tensors(chunks, tensors, started, dtype)
