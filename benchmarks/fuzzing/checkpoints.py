"""Models to start from, damaged: Hugging Face folders and ``.nemo`` archives."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path

from fuzzing.readers import Outcome, Target, damaged_copy, refusing

from nemo_rpo.config.architecture import GPTArchitecture

_SHAPE = GPTArchitecture(2, 8, 12, 2, 2, 4, vocab_size=20, max_position_embeddings=16, init_method_std=0.02)
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def make_checkpoints(folder: Path) -> None:
    """A Hugging Face folder of one file, one of several, and a ``.nemo`` archive and its folder."""
    import torch
    from safetensors.torch import save_file

    from nemo_rpo.megatron.checkpoint.huggingface.mapping import hf_shapes, megatron_tensors
    from nemo_rpo.megatron.checkpoint.nemo.config import config_from_architecture
    from nemo_rpo.megatron.checkpoint.nemo.mapping import nemo_tensors
    from nemo_rpo.megatron.checkpoint.nemo.writer import NemoWriter

    tensors = {name: torch.ones(shape) for name, shape in hf_shapes(megatron_tensors(_SHAPE)).items()}
    for name in ("hf", "hf_many"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(_LLAMA))
    save_file(tensors, folder / "hf" / "model.safetensors")
    halves = {f"model-{i}-of-2.safetensors": sorted(tensors)[i::2] for i in range(2)}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, folder / "hf_many" / file)
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    (folder / "hf_many" / "model.safetensors.index.json").write_text(json.dumps(index))
    writer = NemoWriter(folder / "whole.nemo", _SHAPE.num_layers, source=None)
    for name, shape in hf_shapes(nemo_tensors(_SHAPE)).items():
        writer.add(name, torch.ones(shape))
    writer.finish(config_from_architecture(_SHAPE, {}, "32"))
    with tarfile.open(folder / "whole.nemo") as tar:
        tar.extractall(folder / "nemo", filter="data")


def _huggingface(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    from nemo_rpo.megatron.checkpoint.huggingface.config import architecture_from_hf
    from nemo_rpo.megatron.checkpoint.huggingface.mapping import hf_shapes, megatron_tensors
    from nemo_rpo.megatron.checkpoint.huggingface.weights import SafetensorsFolder

    path = damaged_copy(rng, prepared / rng.choice(["hf", "hf_many"]), folder)

    def read() -> None:
        architecture = architecture_from_hf(path)
        shapes = hf_shapes(megatron_tensors(architecture))
        with SafetensorsFolder(path) as weights:
            weights.check(shapes, tied=False)
            for name, shape in shapes.items():
                weights.read(name, tuple(slice(0, size) for size in shape))

    return refusing(read)


def _nemo(rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    from nemo_rpo.megatron.checkpoint.huggingface.mapping import hf_shapes
    from nemo_rpo.megatron.checkpoint.nemo.archive import NemoArchive
    from nemo_rpo.megatron.checkpoint.nemo.config import architecture_from_nemo
    from nemo_rpo.megatron.checkpoint.nemo.mapping import nemo_tensors
    from nemo_rpo.megatron.checkpoint.nemo.open import open_weights

    path = damaged_copy(rng, prepared / rng.choice(["whole.nemo", "nemo"]), folder)

    def read() -> None:
        architecture = architecture_from_nemo(path)
        shapes = hf_shapes(nemo_tensors(architecture))
        with NemoArchive(path) as archive:
            weights = open_weights(archive, gated=True)
            weights.check(shapes, tied=False)
            for name, shape in shapes.items():
                weights.read(name, tuple(slice(0, size) for size in shape))

    return refusing(read)


CHECKPOINTS = {"Hugging Face folder": Target(_huggingface, 4), ".nemo": Target(_nemo, 4)}
