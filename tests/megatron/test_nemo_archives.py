"""``.nemo`` files that cannot be read: one line each, and no code of theirs runs. (Files of NeMo's own are
``tests/integrations/nemo_aligner``'s.)
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import CheckpointError, ConfigError, RPOError
from nemo_rpo.megatron.checkpoint.huggingface.mapping import hf_shapes
from nemo_rpo.megatron.checkpoint.nemo.archive import NemoArchive
from nemo_rpo.megatron.checkpoint.nemo.config import architecture_from_nemo, config_from_architecture
from nemo_rpo.megatron.checkpoint.nemo.mapping import nemo_tensors
from nemo_rpo.megatron.checkpoint.nemo.open import open_weights
from nemo_rpo.megatron.checkpoint.nemo.writer import NemoWriter

SHAPE = GPTArchitecture(2, 8, 12, 2, 2, 4, vocab_size=20, max_position_embeddings=16, init_method_std=0.02)
INDEX = "model_weights/.metadata"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole ``.nemo``, unpacked."""
    writer = NemoWriter(tmp_path / "whole.nemo", SHAPE.num_layers, source=None)
    for name, shape in hf_shapes(nemo_tensors(SHAPE)).items():
        writer.add(name, torch.arange(float(torch.Size(shape).numel())).view(shape))
    writer.finish(config_from_architecture(SHAPE, {}, "32"))
    with tarfile.open(tmp_path / "whole.nemo") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    return tmp_path / "unpacked"


def refusal(path: Path, kind: type[RPOError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        architecture_from_nemo(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_file_and_its_folder_are_read_alike(folder: Path) -> None:
    for path in (folder, folder.with_name("whole.nemo")):
        assert architecture_from_nemo(path) == SHAPE
        with NemoArchive(path) as archive:
            weights = open_weights(archive, gated=True)
            weights.check(hf_shapes(nemo_tensors(SHAPE)), tied=False)
            name = "decoder.layers.1.mlp.linear_fc2.weight"
            rows = torch.arange(96.0).view(8, 12)[2:5, 3:7]
            assert torch.equal(weights.read(name, (slice(2, 5), slice(3, 7))), rows)


@pytest.fixture
def zarr(folder: Path) -> Path:
    """The same in Megatron's older form, each tensor in blocks of 4 along each of its dimensions."""
    for name, shape in hf_shapes(nemo_tensors(SHAPE)).items():
        whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
        for size in range(whole.dim()):  # blocks at the edge are stored whole
            whole = torch.cat(
                (whole, whole.new_zeros(*whole.shape[:size], -whole.shape[size] % 4, *whole.shape[size + 1 :])), size
            )
        header = {"shape": list(shape), "chunks": [4] * len(shape), "dtype": "<f4", "order": "C", "compressor": None}
        tensor = folder / "model_weights" / f"model.{name}"
        tensor.mkdir()
        (tensor / ".zarray").write_text(json.dumps(header))
        for cell in itertools.product(*(range(size // 4) for size in whole.shape)):
            block = whole[tuple(slice(4 * at, 4 * at + 4) for at in cell)]
            (tensor / ".".join(map(str, cell))).write_bytes(block.contiguous().numpy().tobytes())
    (folder / INDEX).unlink()
    return folder


def test_blocks_of_a_tensor(zarr: Path) -> None:
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    with NemoArchive(zarr) as archive:
        weights = open_weights(archive, gated=True)
        weights.check(hf_shapes(nemo_tensors(SHAPE)), tied=False)
        assert torch.equal(weights.read(name, (slice(2, 7), slice(3, 11))), torch.arange(96.0).view(8, 12)[2:7, 3:11])
    (zarr / f"model_weights/model.{name}/0.1").write_bytes(b"short")
    with (
        NemoArchive(zarr) as archive,
        pytest.raises(CheckpointError, match=r"fc2\.weight/0\.1 is cut short; restore it"),
    ):
        open_weights(archive, gated=True).read(name, (slice(2, 7), slice(3, 11)))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"shape": [8]}', "@chunks", "@order"])
def test_a_damaged_header_of_a_tensor(zarr: Path, text: str) -> None:
    path = zarr / "model_weights/model.decoder.final_layernorm.weight/.zarray"
    whole = json.loads(path.read_text())
    wrong = {"@chunks": whole | {"chunks": [0]}, "@order": {key: whole[key] for key in whole if key != "order"}}
    path.write_text(json.dumps(wrong[text]) if text in wrong else text)
    assert "model.decoder.final_layernorm.weight/.zarray is damaged; restore it" in refusal(zarr)


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "text.nemo").write_text("weights")
    assert "not a .nemo archive" in refusal(tmp_path / "text.nemo")
    with tarfile.open(tmp_path / "packed.nemo", "w:gz"):
        pass
    assert "a compressed archive: unpack it into a folder" in refusal(tmp_path / "packed.nemo")


@pytest.mark.parametrize("module, name", [("os", "system"), ("evil", "Size"), ("torch.hub", "load"), ("torch", "load")])
def test_an_index_that_names_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (folder / INDEX).write_bytes(f"c{module}\n{name}\n.".encode())
    assert f"it names {module}.{name}" in refusal(folder)


def cut_short(folder: Path) -> None:
    (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:100])


def no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def no_config(folder: Path) -> None:
    (folder / "model_config.yaml").unlink()


def no_size(folder: Path) -> None:
    path = folder / "model_config.yaml"
    path.write_text("".join(line for line in path.open() if not line.startswith("hidden_size")))


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut_short, f"{INDEX} is not an index of tensors"),
        (no_index, "has no weights"),
        (no_config, "has no file model_config.yaml"),
        (no_size, "model_config.yaml has no hidden_size"),
    ],
)
def test_damage(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    "setting, advice",
    [
        ("mcore_gpt: false", "convert_gpt_nemo_to_mcore.py"),
        ("num_moe_experts: 8", "a mixture of experts has to be a Hugging Face folder"),
        ("rotary_interleaved: true", "rotary pairs are the two halves of a head"),
    ],
)
def test_a_model_of_another_kind(folder: Path, setting: str, advice: str) -> None:
    path = folder / "model_config.yaml"
    key = setting.partition(":")[0]
    path.write_text("".join(line for line in path.open() if not line.startswith(key)) + setting + "\n")
    assert advice in refusal(folder, ConfigError)
