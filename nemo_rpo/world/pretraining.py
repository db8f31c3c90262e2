"""Pre-training of the policy to align: a Llama small enough for one CPU core, large enough for the language."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nemo_rpo.errors import ConfigError, missing_extra
from nemo_rpo.world.language import BOS, EOS, PAD, Language, stream

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class PretrainConfig:
    """Shape of the model and its training. Tensor parallel 2 divides heads and groups, pipeline parallel 2 the layers.

    Attributes:
        initializer_range: standard deviation of the initial weights. At this width the usual .02 starts with logits so
            small that 400 steps end at the frequencies of single tokens, without the bigrams.
    """

    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    intermediate_size: int = 64
    max_position_embeddings: int = 32
    initializer_range: float = 0.1
    steps: int = 400
    batch_size: int = 128
    lr: float = 2e-3
    clip_grad: float = 1.0


def build_model(language: Language, config: PretrainConfig, seed: int) -> "LlamaForCausalLM":
    """A Llama with the vocabulary of ``language`` and weights drawn from ``seed``; the caller's random state is
    untouched.

    Raises:
        ConfigError: a text is longer than ``max_position_embeddings``.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as exc:
        raise missing_extra("transformers", "hf") from exc
    if config.max_position_embeddings < language.config.text_length:
        raise ConfigError(
            f"world: max_position_embeddings ({config.max_position_embeddings}) is below the text length "
            f"({language.config.text_length})"
        )
    words = language.config.vocabulary
    shape = LlamaConfig(
        vocab_size=len(words),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        initializer_range=config.initializer_range,
        tie_word_embeddings=True,
        pad_token_id=words.index(PAD),
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(shape).to(torch.float32)


def pretrain(language: Language, config: PretrainConfig, seed: int, directory: Path) -> dict[str, float]:
    """Train on fresh texts of the language in fp32 and save a Hugging Face folder (config.json, safetensors).

    The step is AdamW without weight decay under a cosine from ``lr`` to 0. One thread: the matrices are too small for
    more, and the order of every sum, so the saved bytes, does not depend on the machine's core count.

    Returns:
        {"loss": mean of the last 20 steps, "entropy": the least possible}, in nats a text over the tokens after bos.
    """
    model = build_model(language, config, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.steps)
    rng = stream(seed, "pretraining")
    losses: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(config.steps):
            style = rng.integers(language.config.styles, size=config.batch_size)
            tokens = torch.from_numpy(language.token_ids(style, language.respond(style, rng)))
            logits = model(input_ids=tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
            optimizer.step()
            schedule.step()
            losses.append(loss.item() * (tokens.shape[1] - 1))
    finally:
        torch.set_num_threads(threads)
    _save(model, directory)
    tail = losses[-20:]
    return {"loss": sum(tail) / len(tail), "entropy": language.entropy()}


def _save(model: "LlamaForCausalLM", directory: Path) -> None:
    from transformers.utils import logging as hf_logging

    # A progress bar for one shard of 80 kB would be the loudest line of the run.
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        model.save_pretrained(str(directory))
    finally:
        if shown:
            hf_logging.enable_progress_bar()
