import gzip
import json
import os
from pathlib import Path

import pytest

from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEXT = [
    "which answer is the better one, and who says so?",
    "a tie says nothing; a vote says a little; many votes of honest annotators say a lot.",
    "once upon a time there was a little cat who liked to play with a red ball in the garden.",
    "the quick brown fox jumps over the lazy dog while the dog dreams of foxes.",
]


def write_jsonl(path: Path, rows: list) -> Path:
    """``rows`` as JSONL, a string going in as the line it is; gzipped where the name says so."""
    lines = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def train_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE, vocab_size: int = 400) -> Path:
    """A byte-level BPE tokenizer with bos, eos and a chat template, trained on a few lines and saved as a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> PreferenceTokenizer:
    return PreferenceTokenizer.load(TokenizerSpec(str(tokenizer_folder), use_chat_template=False))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("NEMO_RPO_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set NEMO_RPO_DATA")
    return folder
