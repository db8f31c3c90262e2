"""The tiny world of the engine's tests as NeMo-Aligner takes it: its rows, its recipe, its checkpoint's architecture.

Both environments import this, so that both train the same weights on the same rows in the same order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from config.aligner import SETTINGS, nested
from paths import TESTS

from nemo_rpo.data.batches.sampler import GlobalBatchSampler

sys.path.insert(0, str(TESTS / "megatron"))
import tiny_world

GLOBAL_BATCH, STEPS, SEED, LENGTH = 8, 4, 5, 24
# A multiple of 16 as it is: NeMo-Aligner's log-probs are over the padding of a vocabulary too, the engine's are not.
WORDS = (*tiny_world.WORDS, *(f"more{i}" for i in range(5)))
VOCABULARY = len(WORDS)
BETA, LR = 0.5, 2e-3
# One refit in the course of a run, and one at its end.
BUFFER = {"refit_every": 3, "min_information": 0.0, "min_gain": -1e9}
TRAJECTORY = Path(__file__).with_name("engine_trajectory.json")


def rows(pairs: int, seed: int) -> list[dict[str, Any]]:
    """Rows of NeMo-Aligner's layout with one more field; a prompt starts with the token that the engine puts there."""
    made = []
    for row in tiny_world.rows(pairs, seed, several_votes=False):
        (vote,) = row["votes"]
        chosen, rejected = ("response_a", "response_b") if vote["vote"] == "a" else ("response_b", "response_a")
        made.append(
            {
                "prompt": "<s> " + row["prompt"],
                "chosen_response": row[chosen],
                "rejected_response": row[rejected],
                "annotator": vote["annotator"],
            }
        )
    return made


def make(folder: Path) -> Path:
    """``model/`` (Hugging Face), ``tokenizer/`` (for NeMo), ``train.jsonl`` and ``validation.jsonl``."""
    write_model(folder / "model")
    write_tokenizer(folder / "tokenizer")
    tiny_world.write_rows(folder / "train.jsonl", in_order(rows(GLOBAL_BATCH * STEPS, seed=6)))
    tiny_world.write_rows(folder / "validation.jsonl", rows(GLOBAL_BATCH, seed=7))
    return folder


def write_model(folder: Path, seed: int = 1) -> None:
    config = tiny_world.CONFIG | {"vocab_size": VOCABULARY}
    with mock.patch.multiple(tiny_world, WORDS=WORDS, CONFIG=config):
        tiny_world.write_model(folder, seed)


def write_tokenizer(folder: Path) -> None:
    """The world's tokenizer, with an answer for unknown words: NeMo tries one when it loads a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def in_order(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as the engine's sampler takes them from a file that holds them as ``made``."""
    sampler = GlobalBatchSampler(len(made), GLOBAL_BATCH, SEED)
    return [made[i] for step in range(sampler.steps_per_epoch) for i in sampler.batch(step)]


def architecture(tensor_parallel: int) -> dict[str, Any]:
    """The model's shape under NeMo's names, as a checkpoint's configuration has it."""
    return {
        "encoder_seq_length": LENGTH,
        "max_position_embeddings": tiny_world.CONFIG["max_position_embeddings"],
        "num_layers": tiny_world.LAYERS,
        "hidden_size": tiny_world.HIDDEN,
        "ffn_hidden_size": tiny_world.FFN,
        "num_attention_heads": tiny_world.HEADS,
        "num_query_groups": tiny_world.GROUPS,
        "kv_channels": tiny_world.HEAD,
        "layernorm_epsilon": tiny_world.CONFIG["rms_norm_eps"],
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "bias": False,
        "position_embedding_type": "rope",
        "share_embeddings_and_output_weights": True,
        "make_vocab_size_divisible_by": VOCABULARY // tensor_parallel,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "ffn_dropout": 0.0,
    }


def on_cpu(tensor_parallel: int = 1, pipeline_parallel: int = 1) -> dict[str, Any]:
    """What of a checkpoint's configuration says that there are no CUDA kernels, and the layout."""
    fusions = ("gradient_accumulation", "bias_activation", "bias_dropout_add", "masked_softmax")
    return {
        "tensor_model_parallel_size": tensor_parallel,
        "pipeline_model_parallel_size": pipeline_parallel,
        "use_cpu_initialization": True,
        "transformer_engine": False,
        "gradient_as_bucket_view": True,
        "persist_layer_norm": False,
        "precision": 32,
        "sequence_parallel": False,
        "init_method_std": 0.02,
        "dist_ckpt_format": "torch_dist",
        **{f"{name}_fusion": False for name in fusions},
    }


def recipe(world: Path, run: Path, overrides: dict[str, Any], ranks: int = 1) -> dict[str, Any]:
    """NeMo-Aligner's gpt_dpo.yaml with the settings of a tiny run, and ``overrides`` (dotted keys)."""
    tensor, pipeline = (overrides.get(f"model.{name}_model_parallel_size", 1) for name in ("tensor", "pipeline"))
    settings = SETTINGS | {
        "trainer.num_nodes": 1,
        "trainer.devices": ranks,
        "trainer.accelerator": "cpu",
        "trainer.precision": 32,
        "trainer.max_time": None,
        "trainer.dpo.max_epochs": 1,
        "trainer.dpo.val_check_interval": STEPS,
        "trainer.dpo.save_interval": 0,
        "trainer.dpo.limit_val_batches": 1,
        "trainer.dpo.gradient_clip_val": 1.0,
        "exp_manager.explicit_log_dir": str(run),
        "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": False,
        # NeMo-Aligner reads from a checkpoint's name where its run stood.
        "exp_manager.checkpoint_callback_params.filename": "gpt--{val_loss:.3f}-{step}-{consumed_samples}-{epoch}",
        "pretrained_checkpoint.restore_from_path": str(world / "tiny.nemo"),
        "model.micro_batch_size": 2,
        "model.global_batch_size": GLOBAL_BATCH,
        "model.megatron_amp_O2": False,
        "model.seed": SEED,
        "model.dpo.ref_policy_kl_penalty": BETA,
        "model.dpo.preference_loss": "dpo",
        "model.dpo.preference_average_log_probs": False,
        "model.peft.lora_tuning": {
            "target_modules": ["attention_qkv"],
            "adapter_dim": 8,
            "adapter_dropout": 0.0,
            "column_init_method": "xavier",
            "row_init_method": "zero",
            "layer_selection": None,
            "weight_tying": False,
            "position_embedding_strategy": None,
        },
        "model.optim": {
            "name": "adamw",
            "lr": LR,
            "weight_decay": 0.0,
            "betas": [0.9, 0.98],
            "sched": {"name": "CosineAnnealing", "warmup_steps": 0, "constant_steps": 0, "min_lr": LR},
        },
        "model.data.data_prefix": {
            name: [str(world / f"{file}.jsonl")]
            for name, file in (("train", "train"), ("validation", "validation"), ("test", "validation"))
        },
        "model.data.append_eod": True,
        "model.data.seq_length": LENGTH,
    }
    cpu = {f"model.{name}": value for name, value in on_cpu(tensor, pipeline).items()}
    cpu["model.make_vocab_size_divisible_by"] = VOCABULARY // tensor
    above = ("model.optim.", "model.peft.lora_tuning.")
    settings = {name: value for name, value in settings.items() if not name.startswith(above)}
    return nested(settings | cpu | overrides)


def engine_overrides() -> list[str]:
    """Of ``tests/megatron/tiny.yaml``, the settings of the same run."""
    return [
        "trainer.dpo.max_epochs=1",
        f"model.seed={SEED}",
        "model.micro_batch_size=2",
        f"model.global_batch_size={GLOBAL_BATCH}",
        f"model.dpo.ref_policy_kl_penalty={BETA}",
        "model.optim.name=adam",
        "model.optim.weight_decay=0.0",
        f"model.optim.lr={LR}",
        f"model.optim.sched.min_lr={LR}",
        "model.optim.sched.warmup_steps=0",
    ]


def engine_rows() -> list[dict[str, Any]]:
    """The training rows in the file order whose shuffled order ``train.jsonl`` has, without the token at the front."""
    return [row | {"prompt": row["prompt"].removeprefix("<s> ")} for row in rows(GLOBAL_BATCH * STEPS, seed=6)]


def trajectory() -> dict[str, Any]:
    """What the package's own engine leaves: the ``annotators``' ids, and under ``ema`` and ``buffer`` each the ``loss``
    and ``eta`` of every step, and ``settled``, η at the end.
    """
    return json.loads(TRAJECTORY.read_text(encoding="utf-8"))
