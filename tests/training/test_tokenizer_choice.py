"""Which tokenizer a run takes: the settings', else the one that the checkpoint names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError
from nemo_rpo.training.data_of_run import tokenizer_spec


@pytest.fixture
def nemo(tmp_path: Path) -> Path:
    """An unpacked ``.nemo`` as far as its configuration."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    return folder


def config(nemo: Path, said: dict[str, Any] | None, **settings: Any) -> RunConfig:
    (nemo / "model_config.yaml").write_text(yaml.safe_dump({"tokenizer": said}), encoding="utf-8")
    cfg = RunConfig()
    cfg.pretrained_checkpoint.restore_from_path = str(nemo)
    for key, value in settings.items():
        setattr(cfg.model.tokenizer, key, value)
    return cfg


def refusal(cfg: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        tokenizer_spec(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_one_that_a_nemo_file_names(nemo: Path, tmp_path: Path) -> None:
    spec = tokenizer_spec(config(nemo, {"library": "huggingface", "type": str(tmp_path), "use_fast": True}))
    assert (spec.library, spec.folder, spec.type) == ("huggingface", str(tmp_path), None)
    file = tmp_path / "pieces.model"
    file.write_bytes(b"")
    said = {"library": "sentencepiece", "type": None, "model": str(file), "sentencepiece_legacy": True}
    spec = tokenizer_spec(config(nemo, said))
    assert (spec.library, spec.folder, spec.model, spec.sentencepiece_legacy) == (
        "sentencepiece",
        None,
        str(file),
        True,
    )
    assert spec.settings() == said | {"vocab_file": None, "merge_file": None}, "an export names it in the same words"


def test_the_settings_come_first(nemo: Path, tmp_path: Path) -> None:
    said = {"library": "huggingface", "type": str(tmp_path)}
    assert tokenizer_spec(config(nemo, said, type="elsewhere")).folder == "elsewhere"
    spec = tokenizer_spec(config(nemo, said, library="sentencepiece", model="pieces.model"))
    assert (spec.library, spec.folder, spec.model) == ("sentencepiece", None, "pieces.model")


def test_one_that_is_not_here(nemo: Path) -> None:
    said = refusal(config(nemo, {"library": "huggingface", "type": "meta-llama/Meta-Llama-3-8B"}))
    assert "meta-llama/Meta-Llama-3-8B of library huggingface" in said and "model.tokenizer.type" in said
    said = refusal(config(nemo, {"library": "sentencepiece", "model": "nemo:0a1b_tokenizer.model"}))
    assert "inside (0a1b_tokenizer.model): unpack it with tar -xf" in said
    assert "model.tokenizer.library=sentencepiece" in said and "model.tokenizer.model" in said
    assert "one of library None" in refusal(config(nemo, None))
    cfg = RunConfig()
    assert refusal(cfg) == "model.tokenizer.type is not set: give the folder of a Hugging Face tokenizer"
