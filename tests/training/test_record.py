"""What the record says of each label is what the data, the exported policy and the final reliabilities say of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from nemo_rpo.training.logs.metrics import read_metrics

from .runs import STEPS, World

pytestmark = pytest.mark.distributed

BETA = 0.5


def table(run: Path, name: str) -> dict[str, list]:
    return parquet.read_table(run / f"{name}.parquet").to_pydict()


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.no_grad()
def margins(folder: Path, reference: Path, rows: list[dict]) -> np.ndarray:
    """β times the difference of the log-ratios, by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    policy, frozen = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (folder, reference)
    )

    def logprob(model: torch.nn.Module, row: dict, side: str) -> float:
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = tokenizer(row[side], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[range(len(response)), response].sum().item()

    ratio = {
        side: np.array([logprob(policy, row, side) - logprob(frozen, row, side) for row in rows])
        for side in ("chosen", "rejected")
    }
    return BETA * (ratio["chosen"] - ratio["rejected"])


def test_labels(world: World, unbroken: Path) -> None:
    found, annotators = table(unbroken, "posteriors"), table(unbroken, "annotators")
    rows = rows_of(world.folder / "train.jsonl")
    by_id = dict(zip(found["pair_id"], range(len(rows)), strict=True))
    assert len(found["pair_id"]) == len(rows) == len(by_id)
    order = [by_id[row["pair_id"]] for row in rows] if "pair_id" in rows[0] else list(range(len(rows)))
    assert [found["annotator"][i] for i in order] == [row["annotator"] for row in rows]
    assert set(found["sign"]) == {1}
    assert [found["source"][i] for i in order] == [f"{world.folder}/train.jsonl:{n}" for n in range(1, len(rows) + 1)]

    # The run ends with a sweep, so the last sight is that of the exported policy.
    delta = margins(unbroken / "hf", world.folder / "model", rows)
    last = np.array(found["delta_last"])[order]
    np.testing.assert_allclose(last, delta, atol=1e-3)
    eta = dict(zip(annotators["id"], annotators["eta"], strict=True))
    right = 1 / (
        1 + np.exp(-last - np.array([np.log(eta[row["annotator"]] / (1 - eta[row["annotator"]])) for row in rows]))
    )
    w_last = np.array(found["w_last"])[order]
    np.testing.assert_allclose(w_last, right, atol=1e-6)
    assert found["flipped"] == [w < 0.5 for w in found["w_last"]]


def test_the_first_sight_is_before_the_first_gradient(unbroken: Path) -> None:
    """Eight pairs are seen in the step at which the policy still is its reference, with every η at its start."""
    found = table(unbroken, "posteriors")
    untouched = [i for i, delta in enumerate(found["delta_first"]) if delta == 0]
    assert len(untouched) == 8
    assert [found["w_first"][i] for i in untouched] == pytest.approx([0.9] * 8)
    assert None not in found["w_first"] and found["delta_first"] != found["delta_last"]


def test_annotators(unbroken: Path) -> None:
    found = table(unbroken, "annotators")
    sweeps = [row for row in read_metrics(unbroken) if row["split"] == "sweep"]
    assert found["trajectory_steps"][0] == list(range(1, STEPS + 1))
    assert found["eta_start"] == [0.9] * 4
    ways = np.array(found["trajectory_eta"])
    np.testing.assert_allclose(ways[:, -1], found["eta"], atol=1e-6)
    for row in sweeps:
        assert ways[:, row["step"] - 1].mean() == pytest.approx(row["em/eta_mean"], abs=1e-6)
    logged = [row["em/eta_mean"] for row in read_metrics(unbroken) if row["split"] == "train"]
    assert ways[:, 0].mean() == pytest.approx(logged[0], abs=1e-6)
    assert all(0.02 < error < 0.2 for error in found["standard_error"])


def test_held_out_pairs(world: World, unbroken: Path) -> None:
    found = table(unbroken, "validation")
    rows = rows_of(world.folder / "validation.jsonl")
    assert len(found["delta"]) == len(rows)
    np.testing.assert_allclose(found["delta"], margins(unbroken / "hf", world.folder / "model", rows), atol=1e-3)
    assert set(found["annotator"]) == {None}  # nobody that the run knows


def test_without_a_record(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    world.train(out, "model.rpo.record=false", "trainer.dpo.max_steps=2")
    assert not list(out.glob("*.parquet")) and (out / "annotators.csv").exists()


def test_what_a_trained_policy_repeats_of_several_votes(world: World, tmp_path: Path) -> None:
    """In the second pass w hears margins in full where there is one vote, and by one smaller factor elsewhere."""
    rows = rows_of(world.folder / "train.jsonl")[:48]
    votes = [[row["annotator"]] * (1 + i % 2) for i, row in enumerate(rows)]
    other = [of[:1] if len(of) == 1 else [of[0], rows[i - 1]["annotator"] + "_too"] for i, of in enumerate(votes)]
    written = [
        {k: row[k] for k in ("pair_id", "prompt")}
        | {"response_a": row["chosen"], "response_b": row["rejected"]}
        | {"votes": [{"annotator": name, "vote": "a"} for name in names]}
        for row, names in zip(rows, other, strict=True)
    ]
    data, run = tmp_path / "votes.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in written))
    settings = [f"model.data.data_prefix.train=[{data}]", "trainer.dpo.max_epochs=3", "trainer.dpo.max_steps=-1"]
    settings += [
        "model.rpo.estimator=buffer",
        "model.rpo.buffer={refit_every: 1, min_gain: -1e9, fit_temperature: false}",
        "model.optim.lr=1e-2",
    ]
    world.train(run, *settings, "model.rpo.label_model.enabled=false", "model.rpo.sweep=none")
    found, annotators = table(run, "posteriors"), table(run, "annotators")
    logit_eta = dict(zip(annotators["id"], (np.log(e / (1 - e)) for e in annotators["eta"]), strict=True))
    by_pair: dict[str, list[int]] = {}
    for i, pair in enumerate(found["pair_id"]):
        by_pair.setdefault(pair, []).append(i)
    factors: dict[int, list[float]] = {1: [], 2: []}
    for labels in by_pair.values():
        i, delta = labels[0], found["delta_last"][labels[0]]
        if abs(delta) > 0.05 and 1e-3 < found["w_last"][i] < 1 - 1e-3:
            heard = np.log(found["w_last"][i] / (1 - found["w_last"][i])) - sum(
                logit_eta[found["annotator"][j]] for j in labels
            )
            factors[len(labels)].append(heard / delta)
    weight = [row["em/voice_weight"] for row in read_metrics(run) if "em/voice_weight" in row][-1]
    one, several = (np.array(factors[n]) for n in (1, 2))
    assert len(one) > 4 and len(several) > 4 and weight > 0
    np.testing.assert_allclose(one, weight, rtol=1e-2)
    np.testing.assert_allclose(several, several.mean(), rtol=1e-2)
    assert several.mean() < 0.9 * weight
