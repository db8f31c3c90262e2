"""A language model of a few thousand parameters with its tokenizer, preference rows, and trainers for both."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig

from nemo_rpo.integrations.trl import RPOTrainer

WORDS = [f"w{i}" for i in range(20)]


def make_model(folder: Path) -> str:
    """Writes model and tokenizer, float32 and random, into ``folder``."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<unk>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def rows(pairs: int, annotators: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs in TRL's plain layout; annotator k turns the label round the more often the larger k is."""
    rng = random.Random(seed)

    def text(words: list[str]) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(2, 6)))

    made = []
    for i in range(pairs):
        sides = text(WORDS[:12]), text(WORDS[8:])
        chosen, rejected = sides[::-1] if rng.random() < (i % annotators) / (2 * annotators) else sides
        row = {"prompt": text(WORDS) + " ", "chosen": chosen, "rejected": rejected, "annotator": f"a{i % annotators}"}
        made.append(row)
    return made


def arguments(folder: Path, **settings: Any) -> DPOConfig:
    defaults = {
        "per_device_train_batch_size": 4,
        "learning_rate": 0.005,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "beta": 0.5,
        "max_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
    }
    return DPOConfig(str(folder), **{**defaults, **settings})


class InOrder(RPOTrainer):
    """Takes the rows of the data in their order, so that a test knows what is in each batch."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


def trainer(model: str, args: DPOConfig, data: list[dict[str, Any]], rpo: Any = None, **kwargs: Any) -> InOrder:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return InOrder(
        model, args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer, rpo=rpo, **kwargs
    )


def logged(of: RPOTrainer, name: str) -> list[float]:
    return [line[name] for line in of.state.log_history if name in line]
