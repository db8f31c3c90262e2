"""What a person gets wrong: one line that names the thing to change, status 2 on every rank, nothing left behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import unittest.mock
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from torchrun import run_apart

from nemo_rpo.digests import damage, digests_of
from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.run_file import read_run, write_run

from .runs import STEPS, World, step

pytestmark = pytest.mark.distributed

HEADS, GROUPS, LAYERS = 4, 2, 2  # of the world's model


def refused(world: World, out: Path, *overrides: str, ranks: int = 1, forked: bool = True) -> str:
    """The one line that a run says and nothing else, before it has anything to show.

    ``forked``: without the imports, which might say something; one run of each kind is whole.
    """
    result = world.train(out, *overrides, ranks=ranks, check=False, forked=forked)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert not out.exists() or {path.name for path in out.iterdir()} <= {".lock"}
    return lines[0].removeprefix("error: ")


def each_rank(world: World, out: Path, *overrides: str, ranks: int = 2) -> list[tuple[int, str]]:
    """Status and words of every rank, each started by itself: no torchrun is there to end the others."""
    command = ["-m", "nemo_rpo.cli", "train", "--config-name", f"{world.folder}/run.yaml", "--"]
    return run_apart([*command, f"exp_manager.explicit_log_dir={out}", *overrides], ranks)


def assert_all_refuse(outcomes: list[tuple[int, str]], message: str) -> None:
    """Status 2 everywhere; what a rank says of the error is ``message``, and no rank adds a traceback."""
    assert [status for status, _ in outcomes] == [2] * len(outcomes), outcomes
    for rank, (_, stderr) in enumerate(outcomes):
        who = f"error on rank {rank}: " if rank else "error: "
        assert stderr.splitlines()[-1] == who + message
        assert "Traceback" not in stderr


def rows(world: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.folder / "train.jsonl").read_text().splitlines()]


def data(path: Path, lines: list[Any]) -> str:
    """Writes rows (a string as the line it is) and returns the setting that trains on them."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return f"model.data.data_prefix.train={path}"


# --- settings: known before any rank starts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        (
            ["model.rpo.etta_init=0.8"],
            1,
            "unknown key model.rpo.etta_init, did you mean model.rpo.eta_init? (override model.rpo.etta_init=0.8)",
        ),
        (
            ["model.global_batch_size=10"],
            2,
            "model.global_batch_size=10 is no multiple of model.micro_batch_size=2 × 2 data-parallel ranks: "
            "choose a multiple of 4",
        ),
        (
            ["model.tensor_model_parallel_size=2"],
            3,
            "3 ranks are no multiple of model.tensor_model_parallel_size=2: start a multiple of 2",
        ),
        (["trainer.devices=4"], 2, "trainer.num_nodes=1 × trainer.devices=4 asks for 4 ranks, but there are 2"),
        (["model.rpo.alpha=2"], 1, "model.rpo.alpha must be"),
    ],
    ids=["unknown-key", "batch", "world-size", "devices", "range"],
)
def test_settings(world: World, tmp_path: Path, overrides: list[str], ranks: int, message: str) -> None:
    assert refused(world, tmp_path / "run", *overrides, ranks=ranks).startswith(message)


# --- data ---------------------------------------------------------------------------------------------------------


def test_missing_file(world: World, tmp_path: Path) -> None:
    said = refused(world, tmp_path / "run", f"model.data.data_prefix.train={tmp_path}/none.jsonl", forked=False)
    assert said == f"data file {tmp_path}/none.jsonl does not exist; check model.data.data_prefix"


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != field}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda row: without(row, "rejected"),
            "field 'rejected' is missing; fields seen: annotator, chosen, pair_id, prompt",
        ),
        (
            lambda row: row | {"chosen": " "},
            "empty completion; set model.data.invalid_pairs=drop to leave such pairs out (1 of 48 pairs)",
        ),
        (  # the same words, hence the same tokens
            lambda row: row | {"chosen": row["rejected"].replace(" ", "  ")},
            "identical completions; set model.data.invalid_pairs=drop to leave such pairs out (1 of 48 pairs)",
        ),
    ],
    ids=["missing-field", "empty", "identical"],
)
def test_bad_row(world: World, tmp_path: Path, spoil: Callable[[dict], dict], message: str) -> None:
    lines = rows(world)
    lines[6] = spoil(lines[6])
    bad = data(tmp_path / "bad.jsonl", lines)
    assert refused(world, tmp_path / "run", bad) == f"{tmp_path}/bad.jsonl:7: {message}"


def test_too_few_rows(world: World, tmp_path: Path) -> None:
    said = refused(world, tmp_path / "run", data(tmp_path / "few.jsonl", rows(world)[:5]))
    assert said == (
        "the data has 5 pairs, fewer than one global batch; lower model.global_batch_size (now 8) or add data"
    )


def test_bad_json_on_every_rank(world: World, tmp_path: Path) -> None:
    lines: list[Any] = rows(world)
    lines[4] = json.dumps(lines[4])[:40]
    outcomes = each_rank(world, tmp_path / "run", data(tmp_path / "bad.jsonl", lines))
    said = outcomes[0][1].removeprefix("error: ").strip()
    assert said.startswith(f"{tmp_path}/bad.jsonl:5: bad JSON (")
    assert_all_refuse(outcomes, said)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock"}


# --- model, tokenizer, layout -------------------------------------------------------------------------------------


def test_heads_that_tensor_parallel_ranks_do_not_divide(world: World, tmp_path: Path) -> None:
    outcomes = each_rank(world, tmp_path / "run", "model.tensor_model_parallel_size=3", ranks=3)
    message = f"model.tensor_model_parallel_size=3 does not divide the model's num_attention_heads={HEADS}; "
    assert_all_refuse(outcomes, message + "choose a divisor of it")


def test_more_stages_than_layers(world: World, tmp_path: Path) -> None:
    layout = ["model.pipeline_model_parallel_size=2", "model.virtual_pipeline_model_parallel_size=2"]
    outcomes = each_rank(world, tmp_path / "run", *layout)
    stages = "model.pipeline_model_parallel_size=2 × virtual_pipeline_model_parallel_size=2 makes 4 stages"
    assert_all_refuse(outcomes, f"{stages} of the model's num_layers={LAYERS}; make fewer")


def test_tokenizer_of_another_model(world: World, tmp_path: Path) -> None:
    """A word more than the model has: its id would read beyond the embeddings."""
    shutil.copytree(world.folder / "model", tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    size = len(words)
    words["new"] = size
    path.write_text(json.dumps(tokenizer))
    lines = rows(world)
    lines[3]["chosen"] += " new"
    said = refused(
        world, tmp_path / "run", data(tmp_path / "more.jsonl", lines), f"model.tokenizer.type={tmp_path}/tokenizer"
    )
    assert said == (
        f"the tokenizer in {tmp_path}/tokenizer gives ids up to {size}, but the model's vocabulary has {size}: "
        "set model.tokenizer.type to the tokenizer that belongs to the checkpoint"
    )


def test_weights_that_are_not_there(world: World, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    said = refused(world, tmp_path / "run", f"pretrained_checkpoint.restore_from_path={tmp_path}/none")
    assert said == f"pretrained_checkpoint.restore_from_path={tmp_path}/none is not a folder or a .nemo on this machine"

    shutil.copytree(world.folder / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    start = f"pretrained_checkpoint.restore_from_path={tmp_path}/model"
    said = refused(world, tmp_path / "run", start, forked=False)
    assert said == (
        f"{tmp_path}/model has no tensor model.layers.1.mlp.up_proj.weight, which its config.json calls for"
    )


# --- the run's folder ---------------------------------------------------------------------------------------------


def test_folder_that_cannot_be_made(world: World, tmp_path: Path) -> None:
    """Rank 0 alone meets it; the others must not wait for it."""
    (tmp_path / "file").touch()
    outcomes = each_rank(world, tmp_path / "file" / "run")
    message = f"the run's folder {tmp_path}/file/run cannot be written (Not a directory): "
    assert_all_refuse(outcomes, message + "give exp_manager.explicit_log_dir another one")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; run the tests as another user for this one")
def test_folder_without_permission(world: World, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    said = refused(world, tmp_path / "locked" / "run")
    assert said.startswith(f"the run's folder {tmp_path}/locked/run cannot be written (Permission denied)")


def test_metric_to_keep_the_best_by(world: World, tmp_path: Path) -> None:
    said = refused(world, tmp_path / "run", "exp_manager.checkpoint_callback_params.monitor=val_los")
    assert said.startswith("exp_manager.checkpoint_callback_params.monitor=val_los is not a validation metric; ")
    assert "val_loss" in said


# --- resuming -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(unbroken: Path, tmp_path: Path) -> Path:
    """A copy of a run whose last checkpoint is gone: the next start has steps to do."""
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    shutil.rmtree(out / "checkpoints" / step(STEPS))
    return out


def latest(out: Path) -> Path:
    return max((out / "checkpoints").iterdir())


def content(out: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}


def not_resumed(world: World, out: Path, *overrides: str) -> str:
    """The last line of a refused resume, which has changed nothing."""
    before = content(out)
    result = world.train(out, *overrides, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    assert content(out) == before
    return result.stderr.splitlines()[-1].removeprefix("error: ")


NO_DIGESTS = "exp_manager.checkpoint_digests=false"
ANOTHER = "or give exp_manager.explicit_log_dir another folder for a new run"


def test_unknown_annotator(world: World, stopped: Path, tmp_path: Path) -> None:
    lines = rows(world)
    lines[6]["annotator"] = "newcomer"
    assert not_resumed(world, stopped, data(tmp_path / "new.jsonl", lines)) == (
        f"{tmp_path}/new.jsonl:7: annotator 'newcomer' is not among the 4 this run knows; "
        "set model.data.allow_new_annotators=true to let new ones join"
    )


def test_other_labels(world: World, stopped: Path, tmp_path: Path) -> None:
    """The same pairs by the same annotators, one label changed hands."""
    lines = rows(world)
    first, second = lines[0], next(row for row in lines if row["annotator"] != lines[0]["annotator"])
    first["annotator"], second["annotator"] = second["annotator"], first["annotator"]
    said = not_resumed(world, stopped, data(tmp_path / "other.jsonl", lines))
    assert said.startswith(f"{latest(stopped)} was trained on other data or with another tokenizer: ")


def test_changed_settings(world: World, stopped: Path) -> None:
    said = not_resumed(world, stopped, "model.rpo.alpha=0.2", "model.optim.lr=1e-3")
    assert said == (
        f"{latest(stopped)} was trained with other settings: model.rpo.alpha was 0.1 and is 0.2; "
        f"model.optim.lr was 0.004 and is 0.001: set them back, {ANOTHER}"
    )


def test_other_starting_weights(world: World, stopped: Path, unbroken: Path) -> None:
    """They are the reference too: with others the run would go on towards something else."""
    said = not_resumed(world, stopped, f"pretrained_checkpoint.restore_from_path={unbroken}/hf")
    assert said == (
        f"{latest(stopped)} was not trained from the weights in {unbroken}/hf, which its reference needs: "
        f"set pretrained_checkpoint.restore_from_path to those, {ANOTHER}"
    )


def test_nothing_to_resume(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert refused(world, out, "exp_manager.resume_ignore_no_checkpoint=false") == (
        f"no checkpoint in {out}/checkpoints: set exp_manager.resume_ignore_no_checkpoint=true to start a new run"
    )


@pytest.mark.parametrize("file", ["run.json", "annotators.jsonl", ".metadata", "__0_0.distcp"])
def test_checkpoint_with_a_file_gone(world: World, stopped: Path, file: str) -> None:
    """An error, not a silent start from an older checkpoint or from nothing."""
    checkpoint = latest(stopped)
    (checkpoint / file).unlink()
    said = not_resumed(world, stopped)
    assert str(checkpoint) in said and file in said and "or move " in said


def test_checkpoint_of_another_megatron_core(world: World, stopped: Path) -> None:
    """Another release may keep in other files what this one looks for."""
    installed = version("megatron-core")

    checkpoint = latest(stopped)
    os.truncate(checkpoint / "__0_0.distcp", 100)
    run = read_run(checkpoint)
    assert run["megatron_core"] == installed
    write_run(checkpoint, run | {"megatron_core": "0.99.0"}, run["files"])
    said = not_resumed(world, stopped, NO_DIGESTS)
    assert said.startswith(f"the checkpoint {checkpoint} cannot be read (")
    assert said.endswith(f"It was written with Megatron-Core 0.99.0, this is {installed}.")


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_named(stopped: Path) -> None:
    checkpoint = latest(stopped)
    run = read_run(checkpoint)
    files = sorted(path.name for path in checkpoint.iterdir())
    assert sorted([*run["files"], "run.json"]) == files and len(files) >= 6
    for name in files:
        path, size = checkpoint / name, (checkpoint / name).stat().st_size
        for place in {0, size // 7, size // 2, size - 1}:
            for bit in (0, 5):
                flip(path, place, bit)
                if name == "run.json":
                    with pytest.raises(CheckpointError, match=r"run\.json is damaged \("):
                        read_run(checkpoint)
                else:
                    assert f"{path} is not as it was written" in damage(checkpoint, run["files"])
                flip(path, place, bit)
    assert read_run(checkpoint) == run and damage(checkpoint, run["files"]) is None
    text = (checkpoint / "run.json").read_text().replace('"consumed_samples"', '"consumed"')
    (checkpoint / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match="as it was written"):
        read_run(checkpoint)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_a_flipped_bit_is_refused_on_every_rank(world: World, stopped: Path, name: str) -> None:
    file = latest(stopped) / name
    flip(file, file.stat().st_size // 2)
    before = content(stopped)
    said = (
        f"{file} is not as it was written (its SHA-256 is another): restore it, or move {latest(stopped)} away to go "
        "on from the checkpoint before it"
    )
    assert_all_refuse(each_rank(world, stopped), said)
    assert content(stopped) == before


def test_a_checkpoint_of_an_older_version(world: World, stopped: Path) -> None:
    """A line that says what to do; without format and digest it is one."""
    checkpoint = latest(stopped)
    run = read_run(checkpoint)
    for key in ("format", "files", "digest"):
        del run[key]
    (checkpoint / "run.json").write_text(json.dumps(run))
    said = not_resumed(world, stopped)
    assert said.startswith(f"{checkpoint} is a checkpoint of format 1, from an older version of this package")


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return Path.touch, (self.proof,)


def test_no_checkpoint_runs_code(world: World, stopped: Path, tmp_path: Path) -> None:
    """Neither its index, nor, in the tensors, what the index might call an object, with digests to match."""
    checkpoint, proof = latest(stopped), tmp_path / "proof"
    index = pickle.loads((checkpoint / ".metadata").read_bytes())

    def seal(files: dict[str, bytes]) -> None:
        for name, data in files.items():
            (checkpoint / name).write_bytes(data)
        run = read_run(checkpoint)
        write_run(checkpoint, run, run["files"] | digests_of(checkpoint, files))

    seal({".metadata": pickle.dumps([index, Attack(proof)])})
    assert f"{checkpoint}/.metadata cannot be read (it names " in not_resumed(world, stopped)
    key = next(key for key in index.state_dict_metadata if key.startswith("em."))
    index.state_dict_metadata[key] = BytesStorageMetadata()
    place = index.storage_data.pop(next(at for at in index.storage_data if at.fqn == key))
    data = io.BytesIO()
    torch.save(Attack(proof), data)
    place.relative_path, place.offset, place.length = "attack.distcp", 0, len(data.getvalue())
    index.storage_data[MetadataIndex(key)] = place
    seal({".metadata": pickle.dumps(index), "attack.distcp": data.getvalue()})
    said = not_resumed(world, stopped)
    assert "Traceback" not in said and not proof.exists()
    pickle.loads(pickle.dumps(Attack(proof)))
    assert proof.exists()  # else it would show nothing


def test_checkpoint_cut_short_on_every_rank(world: World, stopped: Path) -> None:
    """Also where nobody digests it."""
    file = latest(stopped) / "__0_0.distcp"
    os.truncate(file, file.stat().st_size // 2)
    before = content(stopped)
    outcomes = each_rank(world, stopped, NO_DIGESTS)
    said = outcomes[0][1].splitlines()[-1].removeprefix("error: ")
    assert said.startswith(f"the checkpoint {latest(stopped)} cannot be read (")
    assert_all_refuse(outcomes, said)
    assert content(stopped) == before


def test_damaged_checkpoint_to_start_from(world: World, stopped: Path, tmp_path: Path) -> None:
    start, file = latest(stopped), latest(stopped) / "__0_0.distcp"
    os.truncate(file, file.stat().st_size // 2)
    overrides = [f"pretrained_checkpoint.restore_from_path={start}", f"model.tokenizer.type={world.folder}/model"]
    said = refused(world, tmp_path / "new", *overrides)
    assert said.startswith(f"{file} is not as it was written (its SHA-256 is another)")


def test_an_export_that_cannot_be_removed_is_not_reported(world: World, unbroken: Path, tmp_path: Path) -> None:
    """Of a link to another disk the link goes; what stays is an error."""
    from nemo_rpo.training.outputs import exports

    out, disk = tmp_path / "run", tmp_path / "disk"
    shutil.copytree(unbroken, out)
    (out / "hf").rename(disk)
    (out / "hf").symlink_to(disk)
    before = content(disk)
    exports.drop(out)
    assert not (out / "hf").is_symlink() and content(disk) == before
    (out / "hf").mkdir()
    with unittest.mock.patch.object(shutil, "rmtree", side_effect=PermissionError(13, "Permission denied")):
        with pytest.raises(CheckpointError, match="cannot be removed"):
            exports.drop(out)
