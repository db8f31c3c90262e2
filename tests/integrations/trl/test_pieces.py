"""Data and settings around RPOTrainer, and what it says when something does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset, IterableDataset
from paths import ROOT
from trl import DPOTrainer

from nemo_rpo.config.schema import RPOConfig
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.integrations.trl import preference_dataset
from nemo_rpo.integrations.trl.data import VoteCollator, labelled_pairs
from nemo_rpo.integrations.trl.host import check_args

from .world import arguments, rows, trainer

EXAMPLE = ROOT / "examples" / "trl" / "train_rpo.py"


def write(path, data):
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return path


# --- data


def test_a_file_in_trls_layout_needs_one_more_field(tmp_path):
    data = rows(5)
    found = preference_dataset(write(tmp_path / "train.jsonl", data))
    assert [row["chosen"] for row in found] == [row["chosen"] for row in data]
    assert [row["annotator"] for row in found] == [[row["annotator"]] for row in data]
    assert labelled_pairs(found, "annotator").table().labels.tolist() == [2, 2, 1]


def test_the_votes_of_a_pair_make_one_row(tmp_path):
    said = [("a", "a"), ("b", "b"), ("c", "b"), ("d", "tie")]
    votes = [{"annotator": who, "vote": vote} for who, vote in said]
    row = {"pair_id": "p", "prompt": "x", "response_a": "left", "response_b": "right", "votes": votes}
    undecided = {**row, "pair_id": "q", "prompt": "y", "votes": [{"annotator": "d", "vote": "tie"}]}
    path = write(tmp_path / "votes.jsonl", [row, undecided])
    (pair,) = preference_dataset(path)
    assert (pair["chosen"], pair["rejected"]) == ("right", "left")
    assert dict(zip(pair["annotator"], pair["annotator_sign"], strict=True)) == {"a": -1, "b": 1, "c": 1}
    apart = preference_dataset(path, group_votes=False)
    assert sorted((row["chosen"], *row["annotator"]) for row in apart) == [
        ("left", "a"),
        ("right", "b"),
        ("right", "c"),
    ]


def test_what_is_known_of_votes_goes_along(tmp_path):
    def vote(who, side, first, **known):
        return {"annotator": who, "vote": side, "shown_first": first, **known}

    votes = [vote("a", "a", "a", strength=2), vote("b", "b", "b", family="f"), vote("c", "b", "a")]
    row = {"pair_id": "p", "prompt": "x", "response_a": "left", "response_b": "right", "votes": votes, "gold": "a"}
    other = {**row, "pair_id": "q", "prompt": "y", "topic": "cats", "gold": None}
    data = preference_dataset(write(tmp_path / "votes.jsonl", [row, other]))
    assert data[0]["chosen"] == "right" and data[0]["gold"] == "rejected" and data[0]["chosen_first"] == -1
    pairs = labelled_pairs(data, "annotator")
    crowd = pairs.crowd(pairs.table())
    assert crowd.votes.sign.tolist() == [-1, 1, 1] * 2 and crowd.votes.annotator.tolist() == [0, 1, 2] * 2
    assert crowd.columns.shown_first.tolist() == [-1, 1, -1] * 2
    assert crowd.columns.strength[:3].isnan().tolist() == [False, True, True] and crowd.columns.strength[0] == 2
    assert crowd.gold.tolist() == [-1, 0] and crowd.family.tolist() == [-1, 0, -1]
    assert crowd.columns.topic.tolist() == [-1, 0] and list(crowd.columns.topic_names) == ["cats"]
    assert crowd.columns.lengths.tolist() == [[5, 4]] * 2 and crowd.chosen_first.tolist() == [-1, -1]
    with pytest.raises(DataError, match="'strength' must hold one value for each of the 3 annotators"):
        labelled_pairs(Dataset.from_list([{**data[0], "strength": [1.0]}]), "annotator")


def test_a_file_without_annotators_is_refused(tmp_path):
    data = rows(3)
    del data[1]["annotator"]
    path = write(tmp_path / "train.jsonl", data)
    with pytest.raises(DataError, match=r"train\.jsonl:2: the row names no annotator in its field 'annotator'"):
        preference_dataset(path)
    with pytest.raises(DataError, match=r"train\.jsonl:1: field 'rater' is missing"):
        preference_dataset(path, RowFormat(annotator_key="rater"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotator": None}, r"train_dataset:3: the row names no annotator in its column 'annotator'"),
        ({"annotator": ""}, r"train_dataset:3: the row names no annotator"),
        ({"annotator_sign": 2}, r"train_dataset:3: column 'annotator_sign' must hold -1, 0 or 1"),
    ],
)
def test_a_bad_row_is_named(change, message):
    data = [{**row, "annotator_sign": 1} for row in rows(4)]
    data[2] |= change
    with pytest.raises(DataError, match=message):
        labelled_pairs(Dataset.from_list(data), "annotator")


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(DataError, match=r"no column 'rater'; it has prompt, chosen, rejected, annotator\. Set rpo"):
        labelled_pairs(Dataset.from_list(rows(4)), "rater")


def test_a_stream_is_refused():
    with pytest.raises(ConfigError, match="IterableDataset"):
        labelled_pairs(IterableDataset.from_generator(lambda: iter(rows(2))), "annotator")


def test_the_collator_knows_pairs_without_evidence():
    table = labelled_pairs(Dataset.from_list(rows(3)), "annotator").table()
    long, short, empty = [5, 6, 7], [5, 8, 0], [5, 0, 0]  # the prompt is token 5
    ids = torch.tensor([long, empty, long, long, short, short, short, short])
    mask = (ids > 5).long()
    collator = VoteCollator(lambda _: {"input_ids": ids, "completion_mask": mask}, table, "annotator")
    examples = [
        {"annotator": "a2", "rpo_pair_index": 7},
        {"annotator": "a0"},  # an empty response
        {"annotator": ["a1", "stranger"], "annotator_sign": [1, -1]},
        {"annotator": "a0", "annotator_sign": 0},  # nobody took a side
    ]
    batch = collator(examples)
    assert batch["valid"].tolist() == [True, False, True, False]
    assert batch["annotator"].tolist() == [[2, 0], [0, 0], [1, 3], [0, 0]]
    assert batch["sign"].tolist() == [[1, 0], [1, 0], [1, -1], [0, 0]]
    assert batch["pair_index"].tolist() == [7, -1, -1, -1]


# --- settings


@pytest.mark.parametrize(
    ("rpo", "settings", "message"),
    [
        ({"eta_int": 0.8}, {}, r"unknown key rpo\.eta_int; did you mean 'eta_init'"),
        ({"alpha": 3}, {}, r"rpo\.alpha must be above 0 and at most 1"),
        ({"base_loss": "tdpo1"}, {}, r"rpo\.base_loss=tdpo1 needs more than the log-probs"),
        ({"base_loss": "p2l_bt"}, {}, r"rpo\.base_loss=p2l_bt needs more.*'coefficients'.*own engine"),
        ({"base_loss": "p2l_rao_kupper"}, {}, r"rpo\.base_loss=p2l_rao_kupper needs more.*own engine"),
        ({"base_loss": "p2l_bag"}, {}, r"rpo\.base_loss=p2l_bag needs more.*own engine"),
        ({"base_loss": "dr_dpo", "allow_noise_model": True}, {}, r"rpo\.base_loss=dr_dpo weighs every pair by"),
        ({"base_loss": "cdpo"}, {}, r"already models label noise.*rpo\.enabled=false"),
        ({"loss_options": {"beta": 0.2}}, {}, r"β is DPOConfig\.beta"),
        ({"estimator": "adam"}, {}, r"rpo\.estimator must be one of ema, buffer"),
        ({}, {"loss_type": ["ipo"]}, r"DPOConfig\.loss_type=\['ipo'\].*rpo\.base_loss"),
        ({}, {"label_smoothing": 0.1}, r"DPOConfig\.label_smoothing=0\.1"),
    ],
)
def test_bad_settings_are_one_line(rpo, settings, message, model, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        trainer(model, arguments(tmp_path, **settings), rows(4), rpo)
    assert "\n" not in str(caught.value)


def test_a_loss_of_ligers_is_refused_where_it_would_take_the_place(model, tmp_path, monkeypatch):
    args = arguments(tmp_path)
    args.use_liger_kernel = True
    if not hasattr(DPOTrainer, "_compute_loss_liger"):
        assert check_args(args, RPOConfig()) == args.beta
    monkeypatch.setattr(DPOTrainer, "_compute_loss_liger", None, raising=False)
    with pytest.raises(ConfigError, match=r"set DPOConfig\.use_liger_kernel=False"):
        trainer(model, args, rows(4))


def test_an_older_trl_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_rpo.integrations.trl.host.version", lambda package: "0.29.1")
    with pytest.raises(ConfigError, match=r"RPOTrainer needs TRL 1\.0\.0 or newer, found 0\.29\.1: pip install -U trl"):
        trainer(model, arguments(tmp_path), rows(4))


def test_the_block_may_be_the_dataclass(model, tmp_path):
    run = trainer(model, arguments(tmp_path, beta=0.3), rows(4), RPOConfig(eta_init=0.7, base_loss="hinge"))
    assert run.reliabilities == pytest.approx({"a0": 0.7, "a1": 0.7, "a2": 0.7})
    assert (run.loss.name, run.loss.beta) == ("hinge", 0.3)


def test_a_loss_without_a_reference_holds_no_second_model(model, tmp_path):
    assert trainer(model, arguments(tmp_path), rows(4), {"base_loss": "simpo"}).ref_model is None


# --- the example


def example(*options: object, **kwargs) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLE), *map(str, options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, **kwargs)


def test_the_example_trains_on_a_users_file(model, tmp_path):
    path = write(tmp_path / "train.jsonl", rows(8))
    block = json.dumps({"sweep": "end"})
    done = example(
        *("--model_name_or_path", model, "--data", path, "--output_dir", tmp_path / "out", "--rpo", block),
        *("--max_steps", 2, "--use_cpu", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = [line.split() for line in done.stdout.splitlines()[-3:]]
    assert sorted(name for _, name in table) == ["a0", "a1", "a2"]
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_example_reads_the_block_from_a_file(model, tmp_path):
    path = write(tmp_path / "train.jsonl", rows(4))
    recipe = (EXAMPLE.parent / "rpo.yaml").read_text().replace("Qwen/Qwen3-0.6B", model)
    recipe = recipe.replace("train.jsonl", str(path)).replace("runs/trl", str(tmp_path / "out"))
    (tmp_path / "rpo.yaml").write_text(recipe.replace("eta_init: 0.9", "eta_int: 0.9"))
    done = example("--config", tmp_path / "rpo.yaml", "--use_cpu", "--bf16", "false")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "train_rpo.py: unknown key rpo.eta_int; did you mean 'eta_init'?"


def test_the_example_says_what_is_wrong_in_one_line(model, tmp_path):
    path = write(tmp_path / "train.jsonl", rows(4))
    done = example(
        *("--model_name_or_path", model, "--data", path, "--output_dir", tmp_path / "out", "--annotator_key", "rater"),
        *("--use_cpu", "--bf16", "false"),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train_rpo.py:")
    assert "field 'rater' is missing" in done.stderr.splitlines()[-1]
