"""The adapters of a model, spread over tensor, expert and pipeline ranks → a folder that peft loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.config.adapters.adapter_settings import PeftConfig
from nemo_rpo.config.adapters.targets import Targets, targets_in
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.adapter.adapter_mapping import adapter_tensors
from nemo_rpo.megatron.checkpoint.adapter.description import BASE_FILE, PEFT_CONFIG, PEFT_WEIGHTS, AdapterDescription
from nemo_rpo.megatron.checkpoint.adapter.fused_experts import (
    PREFIX,
    FusedTensor,
    fuse,
    fused_tensors,
    patterns,
    target_parameters,
)
from nemo_rpo.megatron.checkpoint.huggingface.exporter import add_reward_head, export_tensors
from nemo_rpo.megatron.checkpoint.huggingface.mapping import megatron_tensors
from nemo_rpo.megatron.checkpoint.huggingface.sharding import adapter_shards
from nemo_rpo.megatron.checkpoint.huggingface.tensors import MegatronTensor


def export_peft(
    chunks: Sequence[torch.nn.Module],
    architecture: GPTArchitecture,
    folder: str | Path,
    peft: PeftConfig,
    base: str,
    fingerprint: str,
    reward_model: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the adapters as ``folder``, new or empty: ``adapter_config.json`` and ``adapter_model.safetensors``, as
    ``PeftModel.from_pretrained`` reads them, and ``nemo_rpo_adapter.json``; a reward head as
    ``reward_head.safetensors``.

    Args:
        base: path of the base's weights, for peft. fingerprint: of these, so that no other base is taken for it.

    Collectives and errors: :func:`nemo_rpo.megatron.checkpoint.huggingface.exporter.export_hf`.
    """
    tuning = peft.lora_tuning
    targets = targets_in(architecture, tuning.target_modules)
    base_tensors = megatron_tensors(architecture)
    made = adapter_tensors(base_tensors, targets, tuning.adapter_dim)
    fused = fused_tensors(base_tensors, targets, tuning.adapter_dim)
    described = AdapterDescription.of_run(peft, architecture, fingerprint)
    alpha = peft.scale * tuning.adapter_dim
    modules, parameters = list(described.matrices), []
    if architecture.experts:
        modules, parameters = _paths(made.tensors, targets)
    config = {
        "peft_type": "LORA",
        "task_type": None if reward_model else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": tuning.adapter_dim,
        "lora_alpha": alpha,
        "lora_dropout": 0.0 if parameters else tuning.adapter_dropout,  # peft has none beside parameters
        "target_modules": modules,
        "target_parameters": parameters or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        **patterns(targets, tuning.adapter_dim, alpha),
    }
    files = {PEFT_CONFIG: config, BASE_FILE: {"base": fingerprint, "matrices": list(described.matrices)}}
    start = partial(_AdapterWriter, Path(folder), made.copies, fused)
    shards = partial(adapter_shards, chunks)
    export_tensors(chunks, made.tensors, lambda stored: (start, files), dtype, add_reward_head, shards)


def _paths(tensors: Iterable[MegatronTensor], targets: Targets) -> tuple[list[str], list[str]]:
    """Paths of the modules and of the parameters that are adapted, where a model has experts.

    By its last name alone a module's namesakes in experts would be meant too. The matrices of an MLP that is no expert
    are named as parameters, which for peft is the same: it takes modules of these names for experts'.
    """
    names = {run.name for of in tensors if of.expert is None for run in of.runs if ".lora_B." in run.name}
    paths = sorted(name.removeprefix(PREFIX).partition(".lora_B.")[0] for name in names)
    parameters = [f"{path}.weight" for path in paths if ".mlp." in path]
    return [path for path in paths if ".mlp." not in path], parameters + target_parameters(targets)


class _AdapterWriter:
    """Collects all tensors, a few rows each, and writes them at the end; the folder gets its name when it is whole."""

    def __init__(self, folder: Path, copies: Mapping[str, Sequence[str]], fused: Sequence[FusedTensor]) -> None:
        self.folder, self._copies, self._fused, self._tensors = folder, copies, fused, {}
        self._files: dict[str, Mapping[str, Tensor]] = {}
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"{folder} exists and is not empty; remove it or export to another folder")

    def add(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor
        for copy in self._copies.get(name, ()):
            self._tensors[copy] = tensor.clone()  # safetensors stores no tensor under two names

    def add_file(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        self._files[file] = tensors

    def finish(self, files: Mapping[str, Any]) -> None:
        """Writes the adapter with its descriptions, ``files`` by name, whole or not at all; on the rank that writes."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        fuse(self._fused, self._tensors)
        writing = self.folder.parent / f".{self.folder.name}.partial"
        try:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            for file, tensors in {PEFT_WEIGHTS: self._tensors, **self._files}.items():
                save_file(dict(tensors), writing / file, metadata={"format": "pt"})
            for file, content in files.items():
                (writing / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            writing.replace(self.folder)
        except (OSError, SafetensorError) as exc:
            shutil.rmtree(writing, ignore_errors=True)
            raise CheckpointError(f"{self.folder} cannot be written: {exc}") from exc
