"""Writes ``tiny.nemo`` into the world's folder: NeMo's own class saves the weights of the Hugging Face folder there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from integrations.nemo_aligner import shim

shim.install()

from omegaconf import OmegaConf  # noqa: E402

from integrations.nemo_aligner import world  # noqa: E402


def new_trainer(tensor_parallel: int) -> Any:
    from nemo.collections.nlp.parts.megatron_trainer_builder import MegatronTrainerBuilder

    run = {"accelerator": "cpu", "devices": tensor_parallel, "num_nodes": 1, "precision": 32, "logger": False}
    run |= {"max_steps": 1, "enable_checkpointing": False, "use_distributed_sampler": False}
    cfg = {"trainer": run, "exp_manager": None, "model": world.on_cpu(tensor_parallel)}
    return MegatronTrainerBuilder(OmegaConf.create(cfg)).create_trainer()


def new_model(folder: Path, settings: dict[str, Any], tensor_parallel: int = 1) -> Any:
    """NeMo's own model of the world's architecture, otherwise only in ``settings``; fresh weights."""
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
    from nemo_aligner.utils.train_script_utils import init_distributed

    model = {
        "mcore_gpt": True,
        "micro_batch_size": 1,
        "global_batch_size": 1,
        "megatron_amp_O2": False,
        "seed": world.SEED,
        "tokenizer": {"library": "huggingface", "type": str(folder / "tokenizer"), "use_fast": True},
        "data": {"data_prefix": None},
        "optim": {"name": "adamw", "lr": world.LR},
        **world.architecture(tensor_parallel),
        **world.on_cpu(tensor_parallel),
        **settings,
    }
    trainer = new_trainer(tensor_parallel)
    gpt = MegatronGPTModel(OmegaConf.create(model), trainer)
    init_distributed(trainer, gpt)
    return gpt


def main() -> None:
    folder = Path(sys.argv[1])
    shim.complete_nemo()
    gpt = new_model(folder, {})

    from nemo_rpo.megatron.checkpoint.huggingface.config import architecture_from_hf
    from nemo_rpo.megatron.checkpoint.huggingface.importer import load_hf_weights

    load_hf_weights(gpt.get_model_module_list(), folder / "model", architecture_from_hf(folder / "model"))
    gpt.save_to(str(folder / "tiny.nemo"))


if __name__ == "__main__":  # checkpoint writers start processes that import this file
    main()
