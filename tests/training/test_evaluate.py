"""``nemo-rpo evaluate`` on a run's export and checkpoints: the margins of training, whatever the ranks; and answers."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from torchrun import run_process

from .runs import STEPS, World, step

pytestmark = pytest.mark.distributed

CPU = ("trainer.accelerator=cpu", "trainer.precision=32", "model.encoder_seq_length=16")


def evaluate(
    *arguments: object, ranks: int = 1, check: bool = True, launched: bool = False
) -> subprocess.CompletedProcess[str]:
    """``launched``: the ranks are started by the command's own launcher."""
    command = ["-m", "nemo_rpo.cli", "evaluate", *map(str, arguments)]
    if ranks > 1 and launched:
        result = run_process([*command, "--nproc-per-node", str(ranks)], forked=False)
    else:
        result = run_process(command, ranks=ranks if ranks > 1 else None)
    assert result.returncode == 0 or not check, result.stderr[-4000:]
    return result


def judged(*arguments: object, ranks: int = 1) -> dict:
    return json.loads(evaluate(*arguments, "--json", "--bootstrap", 200, ranks=ranks, launched=True).stdout)


def test_margins_are_those_of_training(world: World, unbroken: Path, tmp_path: Path) -> None:
    """The export, the last checkpoint, two ranks, and the export as a folder of no run: all say what the run wrote."""
    data, held_out = world.folder / "validation.jsonl", parquet.read_table(unbroken / "validation.parquet")
    expected = dict(zip(held_out["pair_id"].to_pylist(), held_out["delta"].to_pylist(), strict=True))
    alone = tmp_path / "alone"
    alone.symlink_to(unbroken / "hf")
    strangers = ("model.dpo.ref_policy_kl_penalty=0.5", "model.micro_batch_size=2", "model.global_batch_size=8", *CPU)
    for name, arguments, ranks in (
        ("run", (unbroken, data), 1),
        ("checkpoint", (unbroken / "checkpoints" / step(STEPS), data), 1),
        ("two ranks", (unbroken, data), 2),
        ("no run", (alone, data, "--reference", world.folder / "model", *strangers), 1),
    ):
        out = tmp_path / f"{name}.parquet"
        result = judged(*arguments, "--scores", out, ranks=ranks)
        table = parquet.read_table(out)
        found = dict(zip(table["pair_id"].to_pylist(), table["delta"].to_pylist(), strict=True))
        assert found == pytest.approx(expected, abs=1e-4), name
        margins = np.array(list(expected.values()))
        assert result["accuracy"]["value"] == pytest.approx((margins > 0).mean()), name
        assert result["margin"]["value"] == pytest.approx(margins.mean(), abs=1e-4)
        assert result["accuracy"]["low"] <= result["accuracy"]["value"] <= result["accuracy"]["high"]
    before = sorted(path.name for path in world.folder.iterdir())
    assert result["labels"] == len(expected) and sorted(path.name for path in world.folder.iterdir()) == before


def test_two_runs_and_annotators(world: World, unbroken: Path, tmp_path: Path) -> None:
    data, groups = world.folder / "train.jsonl", tmp_path / "groups.csv"
    groups.write_text("annotator,group\na01,good\na02,good\na04,bad\n")
    first = judged(unbroken / "checkpoints" / step(STEPS), data, "--scores", tmp_path / "last.parquet")
    assert {row["annotator"] for row in first["annotators"]} == {"a01", "a02", "a03", "a04"}
    start = (world.folder / "model", data, "--config", unbroken / "config.yaml", "--compare", tmp_path / "last.parquet")
    found = judged(*start, "--groups", groups, "--scores", tmp_path / "start.parquet")
    # The start is its own reference: no margin, every pair half right.
    assert found["accuracy"]["value"] == 0.5 and found["margin"]["value"] == 0
    assert "the policy is its own reference" in found["notes"][0] and first["notes"] == []
    assert found["comparison"]["labels"] == first["labels"] == found["labels"]
    difference = found["comparison"]["differences"]["accuracy"]["value"]
    assert difference == pytest.approx(0.5 - first["accuracy"]["value"])
    assert {name: group["labels"] for name, group in found["groups"].items()} == {
        "good": 24,
        "bad": 12,
        "(no group)": 12,
    }
    text = evaluate(unbroken, data, "--compare", tmp_path / "start.parquet", "--bootstrap", 50).stdout
    assert f"note: of {tmp_path / 'start.parquet'}, every margin is 0" in text
    assert "link of dpo" in text and "permutation test" in text and "a03" in text


def test_another_link(world: World, unbroken: Path) -> None:
    """Under IPO, Δ = 2h/β where DPO's is βh."""
    data = world.folder / "validation.jsonl"
    dpo, ipo = judged(unbroken, data), judged(unbroken, data, "model.dpo.preference_loss=ipo")
    assert ipo["loss"] == "ipo" and ipo["accuracy"] == dpo["accuracy"]
    assert ipo["margin"]["value"] == pytest.approx(dpo["margin"]["value"] * 2 / 0.5**2, rel=1e-3)


@torch.no_grad()
def greedy(folder: Path, prompt: str, tokens: int) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("ranks", [1, 2])
def test_answers(world: World, unbroken: Path, tmp_path: Path, ranks: int) -> None:
    rows = (world.folder / "validation.jsonl").read_text().splitlines()
    prompts = list(dict.fromkeys(json.loads(row)["prompt"] for row in rows))[:3]
    wanted = [greedy(unbroken / "hf", prompt, 6) for prompt in prompts]
    asked = tmp_path / "alpaca.json"
    asked.write_text(json.dumps([{"instruction": prompt, "dataset": "koala", "output": "old"} for prompt in prompts]))
    out, options = tmp_path / "out.json", ("--max-new-tokens", 6, "--name", "ours", "--out", tmp_path / "out.json")
    evaluate(unbroken, asked, "--generate", "alpaca_eval", *options, ranks=ranks)
    assert json.loads(out.read_text()) == [
        {"dataset": "koala", "instruction": prompt, "output": text, "generator": "ours"}
        for prompt, text in zip(prompts, wanted, strict=True)
    ]
    asked, checkpoint = tmp_path / "question.jsonl", unbroken / "checkpoints" / step(STEPS)
    questions = [{"question_id": f"q{i}", "turns": [{"content": prompt}]} for i, prompt in enumerate(prompts)]
    asked.write_text("".join(f"{json.dumps(question)}\n" for question in questions))
    evaluate(checkpoint, asked, "--generate", "arena_hard", *options, ranks=ranks)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["question_id"] for answer in answers] == ["q0", "q1", "q2"]
    assert [answer["choices"] for answer in answers] == [
        [{"index": 0, "turns": [{"content": text}]}] for text in wanted
    ]
    assert {answer["model_id"] for answer in answers} == {"ours"} and len({a["answer_id"] for a in answers}) == 3


def test_samples_are_the_policys_and_the_same_on_any_ranks(world: World, unbroken: Path, tmp_path: Path) -> None:
    """Log-probs against transformers; ranks split the model, or share the asks, which come in another order then."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = (world.folder / "validation.jsonl").read_text().splitlines()
    prompts = list(dict.fromkeys(json.loads(row)["prompt"] for row in rows))[:4]
    asked, found = tmp_path / "prompts.jsonl", []
    drawn = ("--generate", "samples", "--temperature", 1, "--top-p", 0.8, "--max-new-tokens", 8)
    for ranks, layout in ((1, ()), (2, ("model.tensor_model_parallel_size=2",)), (2, ())):
        asked.write_text("".join(f"{json.dumps({'id': prompt, 'prompt': prompt})}\n" for prompt in prompts))
        out = tmp_path / f"{len(found)}.jsonl"
        evaluate(unbroken / "hf", asked, *drawn, "--samples", 3, "--seed", 5, "--out", out, *layout, ranks=ranks)
        found.append({(row["prompt"], row["index"]): row for row in map(json.loads, out.read_text().splitlines())})
        prompts.reverse()
    alone, *others = found
    assert len(alone) == 12 and len({row["text"] for row in alone.values()}) > 6
    model = AutoModelForCausalLM.from_pretrained(unbroken / "hf", dtype=torch.float32).eval()
    tokenizer, checked = AutoTokenizer.from_pretrained(unbroken / "hf"), 0
    for (prompt, index), row in alone.items():
        for other in others:
            there = other[prompt, index]
            assert (there["text"], there["seed"], there["finish"]) == (row["text"], row["seed"], row["finish"])
            assert there["logprob"] == pytest.approx(row["logprob"], abs=1e-4)
        start = tokenizer(prompt)["input_ids"]
        said = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        said += [tokenizer.eos_token_id] * (row["finish"] == "stop")
        if len(said) != row["tokens"]:  # a special token that is no part of the text
            continue
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([start + said])).logits[0, len(start) - 1 : -1].log_softmax(-1)
        checked += 1
        assert log_p.gather(1, torch.tensor(said).unsqueeze(1)).sum().item() == pytest.approx(row["logprob"], abs=1e-4)
        assert row["drawn_logprob"] >= row["logprob"] - 1e-6  # of the likeliest tokens alone
    assert checked >= 6


def test_what_cannot_be_evaluated(world: World, unbroken: Path, tmp_path: Path) -> None:
    """One line, status 2, nothing written."""
    data, scores = world.folder / "validation.jsonl", tmp_path / "scores.parquet"
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "cut.parquet").write_bytes((unbroken / "validation.parquet").read_bytes()[:500])
    (tmp_path / "question.jsonl").write_text('{"question": "?"}\n')
    (tmp_path / "folder").mkdir()
    answers = ("--generate", "arena_hard", "--out", tmp_path / "out.jsonl")
    before = sorted(path for folder in (tmp_path, world.folder, unbroken) for path in folder.rglob("*"))
    for arguments, expected in (
        ((tmp_path / "none", data), "none is not a folder"),
        ((tmp_path / "folder", data), "is no run, no checkpoint of one and no Hugging Face folder"),
        ((world.folder / "model", data), "name its starting weights with --reference"),
        ((unbroken, tmp_path / "none.jsonl"), "none.jsonl does not exist"),
        ((unbroken, tmp_path / "empty.jsonl"), "empty.jsonl is empty"),
        ((unbroken, tmp_path / "cut.parquet"), "no Parquet file, or a truncated one"),
        ((unbroken, data, "--compare", tmp_path / "cut.parquet"), "no Parquet file, or a truncated one"),
        ((unbroken, data, "--compare", unbroken / "posteriors.parquet"), "has no prompt"),
        ((unbroken, data, "--scores", tmp_path / "a/b.parquet"), "does not exist; make it"),
        ((unbroken, data, "--generate", "alpaca_eval"), "--generate and --out go together"),
        (
            (unbroken, data, "--generate", "samples", "--samples", 2, *answers[2:]),
            "are all the same at --temperature 0",
        ),
        ((unbroken, data, "--samples", 2, *answers), "--samples goes with --generate samples"),
        ((unbroken, tmp_path / "question.jsonl", *answers), "question.jsonl:1: no 'question_id'"),
        ((unbroken, data, "model.dpo.preference_los=ipo"), "preference_los"),
    ):
        result = evaluate(*arguments, *(("--scores", scores) if "--scores" not in arguments else ()), check=False)
        assert result.returncode == 2 and result.stdout == "", (arguments, result.stderr)
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result.stderr
        assert expected in result.stderr
    assert sorted(path for folder in (tmp_path, world.folder, unbroken) for path in folder.rglob("*")) == before


def test_help_shows_an_example() -> None:
    assert "nemo-rpo evaluate results/" in evaluate("--help").stdout


def test_the_engine_keeps_the_contract_of_a_sampler(
    world: World, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``nemo-rpo sample --engine``: a text that is asked for by itself is the one that came among others; a policy that
    is none is named."""
    from nemo_rpo.cli import main
    from nemo_rpo.sampling import engine_sampler
    from nemo_rpo.sampling.collecting import Prompt, asks_for, read_responses
    from nemo_rpo.sampling.sampling_settings import SampleSettings

    prompt = json.loads((world.folder / "validation.jsonl").read_text().splitlines()[0])["prompt"]
    asks = asks_for([Prompt("p", prompt, {})], 3, "mine", 2)
    settings = SampleSettings(temperature=1.0, top_p=0.9, max_tokens=6)
    with monkeypatch.context() as few, engine_sampler.EngineSampler(settings, tmp_path / "log") as sampler:
        few.setattr(engine_sampler, "_PORTION", 2)
        sampler.use(unbroken)
        apart = list(sampler.sample(asks))
    assert [(of.prompt, of.index, of.seed) for of in apart] == [(ask.prompt, ask.index, ask.seed) for ask in asks]
    assert all(of.finish in ("stop", "length") and of.tokens and of.logprob < 0 for of in apart)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt_id": "p", "prompt": prompt}))
    given = ["sample", str(tmp_path / "prompts.jsonl"), "--engine", "--run", "mine", "--round", "2", "--samples", "3"]
    given += ["--temperature", "1", "--top-p", ".9", "--max-tokens", "6", "--set", "trainer.precision=32", "--policy"]
    whole = any(of.finish == "stop" for of in apart)  # of six tokens few are
    assert main([*given, str(unbroken), "--out", str(tmp_path / "r.parquet")]) == (0 if whole else 2)
    together = read_responses(tmp_path / "r.parquet").responses
    for ours, its in zip(together, apart, strict=True):
        assert (ours.index, ours.seed, ours.text, ours.tokens) == (its.index, its.seed, its.text, its.tokens)
        assert ours.logprob == pytest.approx(its.logprob, abs=1e-4)
    for arguments, expected in (
        ((str(tmp_path / "none"),), "the engine cannot sample from .*none \\(error: .*none is not a folder"),
        ((str(unbroken), "--url", "http://x"), "--engine samples without a server"),
    ):
        assert main([*given, *arguments, "--out", str(tmp_path / "n.parquet")]) == 2
        assert re.search(expected, capsys.readouterr().err)
