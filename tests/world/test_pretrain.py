"""Pre-training reaches the language's entropy, leaves the caller's random state alone, and repeats bit for bit."""

from dataclasses import replace

import pytest
import torch

from nemo_rpo.errors import ConfigError
from nemo_rpo.world.language import Language, LanguageConfig
from nemo_rpo.world.pretraining import PretrainConfig, build_model, pretrain

pytest.importorskip("transformers", reason="pre-training needs the hf extra")
BRIEF = PretrainConfig(steps=4, batch_size=8)


@pytest.fixture(scope="module")
def language() -> Language:
    return Language(LanguageConfig(), seed=0)


def test_loss_comes_close_to_the_entropy(language, tmp_path):
    """A model that knew only how often each token occurs in each style would stay 2.7 nats a text above it."""
    fit = pretrain(language, PretrainConfig(), 0, tmp_path)
    assert fit["entropy"] == pytest.approx(language.entropy())
    assert fit["entropy"] - 0.2 < fit["loss"] < fit["entropy"] + 1.3
    assert (tmp_path / "config.json").is_file() and (tmp_path / "model.safetensors").is_file()


def test_reruns_are_bitwise_equal_and_seeds_differ(language, tmp_path):
    weights = []
    for run, seed in enumerate((0, 0, 1)):
        torch.manual_seed(100 + run)
        pretrain(language, BRIEF, seed, tmp_path / str(run))
        weights.append((tmp_path / str(run) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_the_callers_random_state_and_threads_are_untouched(language, tmp_path):
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    pretrain(language, BRIEF, 0, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_saved_model_has_the_documented_shape(language, tmp_path):
    from transformers import AutoModelForCausalLM

    pretrain(language, BRIEF, 0, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    shape = model.config
    assert (shape.vocab_size, shape.hidden_size, shape.num_hidden_layers) == (32, 32, 2)
    assert (shape.num_attention_heads, shape.num_key_value_heads, shape.tie_word_embeddings) == (4, 2, True)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_texts_longer_than_the_positions_are_refused(language):
    with pytest.raises(ConfigError, match=r"max_position_embeddings \(8\) is below the text length \(12\)"):
        build_model(language, replace(BRIEF, max_position_embeddings=8), seed=0)
