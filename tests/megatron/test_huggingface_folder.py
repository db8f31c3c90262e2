"""What needs no ranks in Hugging Face import and export: the row mapping, damaged folders, the writer."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("safetensors", reason="Hugging Face folders need safetensors: pip install 'nemo-rpo[hf]'")
from safetensors.torch import load_file, save_file

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.huggingface.mapping import hf_shapes, megatron_tensors
from nemo_rpo.megatron.checkpoint.huggingface.weights import SafetensorsFolder
from nemo_rpo.megatron.checkpoint.huggingface.writer import HuggingFaceFolderWriter

SMALL = GPTArchitecture(
    num_layers=2,
    hidden_size=24,
    ffn_hidden_size=40,
    num_attention_heads=6,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=30,
    max_position_embeddings=64,
)


# The row mapping


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": True}, {"qkv_bias": True}, {"qk_layernorm": True, "share_embeddings_and_output_weights": True}],
)
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_every_row_is_in_exactly_one_place_however_it_is_split(changes: dict[str, Any], ranks: int) -> None:
    tensors = megatron_tensors(replace(SMALL, **changes))
    rows: Counter[tuple[str, int]] = Counter()
    for tensor in tensors:
        padded = tensor.rows + 7 if tensor.key.startswith("embedding") else tensor.rows
        bounds = [padded * rank // ranks for rank in range(ranks + 1)]
        for low, high in itertools.pairwise(bounds):
            for name, theirs, ours in tensor.overlaps(low, high - low):
                assert (
                    0 <= ours.start < ours.stop <= high - low and ours.stop - ours.start == theirs.stop - theirs.start
                )
                rows.update((name, row) for row in range(theirs.start, theirs.stop))
    assert set(rows.values()) == {1}
    assert Counter(name for name, _ in rows) == {name: shape[0] for name, shape in hf_shapes(tensors).items()}


def test_query_key_value_rows_interleave_by_group() -> None:
    [qkv] = [t for t in megatron_tensors(SMALL) if t.key.endswith("linear_qkv.weight") and t.layer == 1]
    blocks = [(run.name.split(".")[4][0], run.start, run.length) for run in qkv.runs]
    assert blocks == [("q", 0, 24), ("k", 0, 8), ("v", 0, 8), ("q", 24, 24), ("k", 8, 8), ("v", 8, 8)]


def test_a_tensor_of_another_shape_is_refused_but_for_a_padded_vocabulary() -> None:
    tensors = {tensor.key: tensor for tensor in megatron_tensors(SMALL)}
    tensors["embedding.word_embeddings.weight"].check_shape((32, 24))
    for key, shape in {
        "embedding.word_embeddings.weight": (29, 24),
        "decoder.layers.mlp.linear_fc2.weight": (32, 40),
    }.items():
        with pytest.raises(ConfigError, match="build the model from this architecture"):
            tensors[key].check_shape(shape)


# Folders


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def drop(folder: Path) -> None:
    save(folder, {name: t for name, t in weights(folder).items() if name != "model.norm.weight"})


def reshape(folder: Path) -> None:
    save(folder, weights(folder) | {"model.norm.weight": torch.zeros(23)})


def quantize(folder: Path) -> None:
    save(folder, weights(folder) | {"model.norm.weight": torch.zeros(24, dtype=torch.int8)})


def add(folder: Path) -> None:
    save(folder, weights(folder) | {"score.weight": torch.zeros(1, 24)})


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def lose_a_file(folder: Path) -> None:
    index(
        folder,
        dict.fromkeys(weights(folder), "model.safetensors") | {"model.norm.weight": "model-00002-of-00002.safetensors"},
    )


def misplace(folder: Path) -> None:
    tensors = weights(folder)
    save_file({"model.norm.weight": tensors.pop("model.norm.weight")}, folder / "other.safetensors")
    save(folder, tensors)
    index(folder, dict.fromkeys([*tensors, "model.norm.weight"], "model.safetensors"))


def break_index(folder: Path) -> None:
    index(folder, "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, "has no tensor model.norm.weight"),
        (reshape, r"model.safetensors: tensor model.norm.weight is \[23\], but config.json makes it \[24\]"),
        (quantize, "model.safetensors: tensor model.norm.weight is stored as I8"),
        (add, "model.safetensors: tensor score.weight has no place"),
        (cut, "model.safetensors is not a readable safetensors file"),
        (pickle, "has neither model.safetensors nor .*pytorch_model.bin"),
        (lose_a_file, "model-00002-of-00002.safetensors does not exist"),
        (misplace, "model.safetensors has no tensor model.norm.weight"),
        (break_index, "index.json is not an index"),
    ],
)
def test_a_damaged_folder_names_file_and_tensor(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    shapes = hf_shapes(megatron_tensors(SMALL))
    save(tmp_path, {name: torch.randn(shape) for name, shape in shapes.items()})
    with SafetensorsFolder(tmp_path) as folder:
        folder.check(shapes, tied=False)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error, SafetensorsFolder(tmp_path) as folder:
        folder.check(shapes, tied=False)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_stored_tied_output_layer_must_equal_the_embeddings(tmp_path: Path) -> None:
    shapes = hf_shapes(megatron_tensors(replace(SMALL, share_embeddings_and_output_weights=True)))
    stored = {name: torch.randn(shape) for name, shape in shapes.items()}
    save(tmp_path, stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()})
    with SafetensorsFolder(tmp_path) as folder:
        folder.check(shapes, tied=True)
    save(tmp_path, stored | {"lm_head.weight": stored["model.embed_tokens.weight"] + 1})
    with (
        pytest.raises(CheckpointError, match="set tie_word_embeddings to false"),
        SafetensorsFolder(tmp_path) as folder,
    ):
        folder.check(shapes, tied=True)


def test_the_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    tokenizer, target = tmp_path / "tokenizer", tmp_path / "exports" / "model"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"):
        (tokenizer / name).write_text(f'"{name}"')
    shapes = {"a": (64,), "b": (64, 2), "c": (1,)}
    writer = HuggingFaceFolderWriter(target, shapes, torch.float32, 512, tokenizer)
    for name in reversed(shapes):  # files are complete in any order
        assert not target.exists()
        writer.add(name, torch.full(shapes[name], 2.5))
    writer.finish({"model_type": "llama"})
    assert {path.name for path in target.iterdir()} == {
        *("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"),
        *("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"),
        "model.safetensors.index.json",
    }
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    with SafetensorsFolder(target) as folder:
        folder.check(shapes, tied=False)
        assert torch.equal(folder.read("b", (slice(60, 64), slice(1, 2))), torch.full((4, 1), 2.5))


def test_the_writer_refuses_before_it_writes(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    (tmp_path / "file").write_text("")
    for folder, tokenizer, message in (
        (tmp_path / "full", None, "full exists and is not empty"),
        (tmp_path / "new", tmp_path / "full", "full holds no tokenizer files"),
        (tmp_path / "file" / "model", None, "model cannot be written"),
    ):
        with pytest.raises(CheckpointError, match=message):
            HuggingFaceFolderWriter(folder, {"a": (1,)}, torch.float32, "5GB", tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.parametrize("weight_map", [3, [], "x", {"a": 1}, {"a": None}, {"a": "../other/x.safetensors"}, {"a": ""}])
def test_an_index_of_another_type_is_named(weight_map: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"index\.json is not an index of safetensors files"):
        SafetensorsFolder(tmp_path)


def test_the_models_generation_config_is_kept_wherever_the_tokenizer_is(tmp_path: Path) -> None:
    for folder, said in (("model", "1"), ("tokenizer", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "generation_config.json").write_text(said)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    for own, expected in (("model", "1"), ("absent", "2")):
        writer = HuggingFaceFolderWriter(
            tmp_path / f"out-{own}",
            {"a": (2,)},
            torch.float32,
            "1GB",
            tmp_path / "tokenizer",
            tmp_path / own / "generation_config.json",
        )
        writer.add("a", torch.zeros(2))
        writer.finish({})
        assert (tmp_path / f"out-{own}" / "generation_config.json").read_text() == expected
        assert (tmp_path / f"out-{own}" / "tokenizer.json").exists()
