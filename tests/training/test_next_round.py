"""A run that goes on from an earlier one, as a round of a loop does: its reference, annotators and distance."""

from __future__ import annotations

import csv
import json
import math
import signal
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
from torchrun import run_process

from nemo_rpo.config.schema import RPOConfig
from nemo_rpo.data.annotator_table import Annotator, AnnotatorTable
from nemo_rpo.errors import ConfigError
from nemo_rpo.training.beliefs import read_beliefs
from nemo_rpo.training.logs.metrics import read_metrics

from .runs import World, checkpoints, step

pytestmark = pytest.mark.distributed


def log_probs(folder: Path, rows: list[dict[str, str]], side: str) -> torch.Tensor:
    """Summed log-probs of the responses of ``side`` under a Hugging Face folder, by transformers alone: ``[rows]``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = tokenizer(row[side], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(response).unsqueeze(1)).sum())
    return torch.stack(found)


def held_out(world: World) -> list[dict[str, str]]:
    return [json.loads(line) for line in (world.folder / "validation.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def second(world: World, unbroken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next round: it starts from the first one's policy, and its reference is what that one started from. Killed
    while it saves its last step, and gone on with.
    """
    out = tmp_path_factory.mktemp("second") / "run"
    settings = next_round(world, unbroken)
    stopped = world.train(out, *settings, stop_at=f"kill open .writing-{step(4)}/run.json", check=False)
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr[-2000:]
    said = [line for line in stopped.stderr.splitlines() if "not the start" in line]
    assert len(said) == 1 and said[0].startswith(f"the reference is {world.folder}/model, not the start: ")
    for key, value, trained in (
        ("reference_from", f"{unbroken}/hf", "against another reference than"),
        ("believe_from", "null", "from other reliabilities than those of"),
    ):
        changed = world.train(out, *settings, f"model.rpo.{key}={value}", check=False)
        shown = "None" if value == "null" else value
        assert changed.returncode == 2 and changed.stderr.splitlines()[-1].startswith(
            f"error: {out}/checkpoints/{checkpoints(out)[-1]} was trained {trained} model.rpo.{key}={shown}: "
            "set it back, "
        )
    world.train(out, *settings)
    return out


def next_round(world: World, unbroken: Path) -> list[str]:
    return [
        f"pretrained_checkpoint.restore_from_path={unbroken}/hf",
        f"model.rpo.reference_from={world.folder}/model",
        f"model.rpo.believe_from={unbroken}",
        f"model.rpo.first_policy={world.folder}/model",
        "trainer.dpo.max_steps=4",
    ]


def test_margins_are_relative_to_the_reference_and_not_to_the_start(world: World, unbroken: Path, second: Path) -> None:
    """The last validation, done again by transformers with three folders."""
    last = [row for row in read_metrics(second) if row["split"] == "val"][-1]
    rows = held_out(world)
    for side in ("chosen", "rejected"):
        policy, reference, start = (
            log_probs(folder, rows, side) for folder in (second / "hf", world.folder / "model", unbroken / "hf")
        )
        assert last[f"rewards_{side}_mean"] == pytest.approx((policy - reference).mean().item(), abs=1e-4)
        assert abs((policy - start).mean().item() - last[f"rewards_{side}_mean"]) > 1e-2


def test_an_evaluation_is_relative_to_the_reference_of_the_run(world: World, second: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "scores.parquet", world.folder / "validation.jsonl"
    ran = run_process(["-m", "nemo_rpo.cli", "evaluate", second, data, "--scores", out, "--bootstrap", "1"])
    assert ran.returncode == 0, ran.stderr
    found, expected = (parquet.read_table(path) for path in (out, second / "validation.parquet"))
    assert found["pair_id"].to_pylist() == expected["pair_id"].to_pylist()
    assert found["delta"].to_pylist() == pytest.approx(expected["delta"].to_pylist(), abs=1e-4)


def test_a_stop_and_the_place_of_the_reference_change_nothing(
    world: World, unbroken: Path, second: Path, tmp_path: Path
) -> None:
    for where in ("cached", "resident"):
        world.train(tmp_path / where, *next_round(world, unbroken), f"model.rpo.reference={where}")
        found, expected = (read_metrics(run, timing=False) for run in (tmp_path / where, second))
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("start", ["hf", "model"])
def test_a_start_behind_its_base_is_named(world: World, unbroken: Path, tmp_path: Path, start: str) -> None:
    """INPO's trap: with π_t as base, margins from another start run against what π_t has learnt."""
    places = {"hf": unbroken / "hf", "model": world.folder / "model"}
    inpo = (
        "model.rpo.base_loss=inpo",
        "model.rpo.link_tau=2",
        "model.rpo.objective=weighted",
        "trainer.dpo.max_steps=1",
    )
    policies = (
        f"pretrained_checkpoint.restore_from_path={places[start]}",
        f"model.rpo.previous_iterate={places['hf']}",
        f"model.rpo.reference_from={places['model']}",
    )
    said = world.train(tmp_path / "run", *inpo, *policies).stderr
    assert ("warning: the policy does not start from model.rpo.previous_iterate" in said) == (start == "model")


def people(run: Path) -> dict[str, dict[str, float]]:
    with (run / "annotators.csv").open(newline="") as file:
        rows = {row.pop("id"): row for row in csv.DictReader(file)}
    return {name: {column: float(value or "nan") for column, value in row.items()} for name, row in rows.items()}


def test_annotators_go_on_from_what_was_known_of_them(unbroken: Path, second: Path) -> None:
    """Half of what the first round knew counts beside this round's labels; the second carries on from the sum."""
    before, after = people(unbroken), people(second)
    table = parquet.read_table(second / "annotators.parquet")
    assert table["id"].to_pylist() == list(before)
    assert table["eta_start"].to_pylist() == pytest.approx([row["eta"] for row in before.values()])
    for name, row in before.items():  # twelve labels under weak margins are worth next to nothing
        assert 0 <= after[name].get("carried", 0.0) <= 0.5 * row["labels"]


def test_half_of_what_was_known_is_carried_to_whoever_is_known(tmp_path: Path) -> None:
    (tmp_path / "annotators.csv").write_text("id,labels,eta,standard_error,carried\na,60,.8,.03,40\nb,9,.6,,\n")
    table = AnnotatorTable([Annotator(name, 1, "x:1") for name in ("c", "a", "b")])
    belief = read_beliefs(str(tmp_path)).about(table, RPOConfig())
    assert belief.start.tolist() == [0.9, 0.8, 0.6]
    answers = belief.known.sum(0).tolist()
    assert answers[0] == answers[2] == 0 and answers[1] == pytest.approx(
        0.5 * 100
    )  # at most its labels and carried ones
    assert 0.75 < belief.known[0, 1] / answers[1] < 0.9


def test_frozen_annotators_are_those_of_the_file(world: World, unbroken: Path, tmp_path: Path) -> None:
    """Of a file of ``nemo-rpo annotators`` as well: an interval instead of an error, and somebody who is not in it."""
    lines = ["annotator,labels,reliability,low,high"]
    for name, row in list(people(unbroken).items())[1:]:
        width = 1.959964 * row["standard_error"]
        lines.append(f"{name},{row['labels']:.0f},{row['eta']},{row['eta'] - width},{row['eta'] + width}")
    (tmp_path / "annotators.csv").write_text("\n".join([*lines, "stranger,9,,,"]))
    out = tmp_path / "run"
    frozen = ("model.rpo.freeze_eta=true", "model.rpo.estimator=buffer", "trainer.dpo.max_steps=9")
    result = world.train(out, *frozen, f"model.rpo.believe_from={tmp_path}/annotators.csv")
    assert f"3 of 4 as in {tmp_path}/annotators.csv, worth " in result.stderr
    assert "label model" in result.stderr and "not fitted, since model.rpo.freeze_eta" in result.stderr
    expected, found = people(unbroken), people(out)
    for name, row in list(expected.items())[1:]:
        assert found[name]["eta"] == row["eta"]
        assert found[name]["standard_error"] == pytest.approx(row["standard_error"], abs=2e-6)
    first = next(iter(expected))
    assert found[first]["eta"] == 0.9 and math.isnan(found[first]["standard_error"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,labels\na,3\n", "annotators.csv:2 is no line of annotators ('reliability'); it takes the columns id, "),
        (
            "id,labels,eta\na,3,1.5\n",
            "annotators.csv:2 is no line of annotators (reliability 1.5, labels 3); it takes ",
        ),
        ("id,labels,eta,standard_error\na,3,.5,\na,3,.5,\n", "annotators.csv:3 has annotator 'a' a second time"),
        ("id,labels,eta\n", "annotators.csv knows the reliability of nobody"),
        (None, "annotators.csv cannot be read ([Errno 2] No such file or directory: "),
    ],
)
def test_no_file_of_annotators(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "annotators.csv").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_beliefs(str(tmp_path))
    assert f"{tmp_path}/{said}" in str(caught.value) and str(caught.value).startswith("model.rpo.believe_from")


def divergences(policy: Path, first: Path, rows: list[dict[str, str]]) -> torch.Tensor:
    """Σ_t KL(policy ‖ first) on each response, by transformers alone: ``[2 rows]``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [AutoModelForCausalLM.from_pretrained(of, dtype=torch.float32).eval() for of in (policy, first)]
    tokenizer, found = AutoTokenizer.from_pretrained(policy), []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            response = tokenizer(row[side], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            ids = torch.tensor([prompt + response])
            with torch.no_grad():
                log_p, log_q = (m(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in models)
            found.append((log_p.exp() * (log_p - log_q)).sum())
    return torch.stack(found)


def test_the_distance_from_the_first_policy_is_measured_while_the_start_moves(
    world: World, unbroken: Path, second: Path, tmp_path: Path
) -> None:
    """By transformers, and on two tensor-parallel ranks; the reference and the start are other policies."""
    last = [row for row in read_metrics(second) if row["split"] == "val"][-1]
    expected = divergences(second / "hf", world.folder / "model", held_out(world))
    assert last["kl_to_start"] == pytest.approx(expected.mean().item(), rel=1e-4) and last["kl_to_start"] > 0.01
    assert last["kl_to_start_error"] == pytest.approx((expected.std() / len(expected) ** 0.5).item(), rel=1e-3)
    split = ("model.tensor_model_parallel_size=2", "model.sequence_parallel=true", "model.rpo.reference=resident")
    out = tmp_path / "split"
    world.train(out, *next_round(world, unbroken), *split, "model.data.packed_sequence=true", ranks=2)
    there = [row for row in read_metrics(out) if row["split"] == "val"][-1]
    assert there["kl_to_start"] == pytest.approx(last["kl_to_start"], rel=1e-3)


def test_a_run_ends_where_it_is_too_far(world: World, tmp_path: Path) -> None:
    """At the first validation, with everything that an end brings; it goes on where the limit is raised."""
    out, limit = tmp_path / "run", "model.rpo.stop_kl=1e-9"
    result = world.train(out, limit)
    assert (
        "ended at step 3 of 12: kl_to_start is " in result.stderr
        and "nats a response, above model.rpo.stop_kl=1e-09" in result.stderr
    )
    assert checkpoints(out)[-1] == step(3) and (out / "hf" / "config.json").exists()
    assert {row["step"] for row in read_metrics(out) if row["split"] == "sweep"} == {3}
    again = world.train(out, limit)
    assert "this run is complete: it ended at step 3, where kl_to_start is " in again.stderr
    world.train(out, "model.rpo.stop_kl=1e3")
    assert checkpoints(out)[-1] == step(12)
