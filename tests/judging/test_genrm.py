"""A judge who is trained on what is believed of the pairs: his rows, his loss, and what he says afterwards."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("jinja2", reason="prompts are Jinja files (extra 'loop')")
from fake_server import FakeServer, said
from torchrun import run_process

from nemo_rpo.cli import main
from nemo_rpo.data.files.read import read_records
from nemo_rpo.data.files.stage import read_table
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.judging.genrm_rows import Teaching
from nemo_rpo.judging.judged_pairs import JudgedPair
from nemo_rpo.judging.judging_settings import ChatJudge, GenerativeJudge
from nemo_rpo.losses import PairLogprobs, build_loss
from nemo_rpo.sampling.asks import Response
from nemo_rpo.training.logs.metrics import read_metrics

PAIRS = [JudgedPair(f"p{i}", f"q{i}", f"a{i}", f"b{i}") for i in range(4)]
BELIEVED = {"p0": 0.9, "p1": 0.2, "p2": 0.5}


def template(tmp_path: Path) -> str:
    (tmp_path / "mine.jinja").write_text("{{ prompt }}: {{ first }} | {{ second }} ->")
    return str(tmp_path / "mine.jinja")


def test_both_orders_and_the_belief_of_each(tmp_path):
    judge = GenerativeJudge(name="j", prompt=template(tmp_path), words={"first": "X", "second": "Y"}, system="Be fair.")
    teaching = Teaching(judge, PAIRS, BELIEVED)
    rows = list(teaching.verdict_rows())
    named = [(row["prompt"], row["chosen"], row["rejected"], pytest.approx(row["win_rate"])) for row in rows]
    assert named == [
        ("q0: a0 | b0 ->", "X", "Y", 0.9),
        ("q0: b0 | a0 ->", "Y", "X", 0.9),
        ("q1: a1 | b1 ->", "Y", "X", 0.8),
        ("q1: b1 | a1 ->", "X", "Y", 0.8),
    ]
    assert {row["system"] for row in rows} == {"Be fair."} and len({row["pair_id"] for row in rows}) == 4
    assert sorted(teaching.left_out.values()) == [2, 2]
    assert len(list(Teaching(judge, PAIRS, BELIEVED, least=0.85).verdict_rows())) == 2
    with pytest.raises(ConfigError, match="gives reasons before his verdict"):
        list(Teaching(ChatJudge(name="j"), PAIRS, BELIEVED).verdict_rows())


def test_reasons_that_reach_the_believed_verdict(tmp_path):
    """Of p0 in both orders: right, wrong, tied, unreadable, and the same right one twice; of p1 all are wrong."""
    judge = ChatJudge(name="j", prompt=template(tmp_path))
    asked = {row["prompt_id"]: row["prompt"][-1]["content"] for row in Teaching(judge, PAIRS, {}).prompt_rows()}
    assert asked["p0:a"] == "q0: a0 | b0 ->" and asked["p0:b"] == "q0: b0 | a0 ->" and len(asked) == 8
    said = {
        "p0:a": ["so [[A]]", "so [[A]]", "[[A]] no, [[B]]", "[[tie]]", "what?"],
        "p0:b": ["so [[A]]", "hence [[B]]"],
        "p1:a": ["so [[A]]"],
    }
    answers = [Response(key, i, 0, text, 1, "stop") for key, texts in said.items() for i, text in enumerate(texts)]
    teaching = Teaching(judge, PAIRS, BELIEVED)
    rows = list(teaching.rationale_rows(answers, 5))
    assert [(row["pair_id"], row["chosen"], row["rejected"]) for row in rows] == [
        ("p0:a:0", "so [[A]]", "[[A]] no, [[B]]"),
        ("p0:b:0", "hence [[B]]", "so [[A]]"),
    ]
    assert teaching.left_out["all its answers are right, or none is"] == 1
    with pytest.raises(DataError, match="none of the responses is to a prompt of these pairs"):
        list(Teaching(judge, PAIRS, BELIEVED).rationale_rows([answers[0].__class__("x", 0, 0, "y", 1, "stop")], 1))


def test_the_loss_is_the_cross_entropy_over_the_two_verdicts():
    """Whatever else the judge might say: a softmax over two logits of a vocabulary of 50."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, generator=generator, dtype=torch.float64, requires_grad=True)
    q = torch.rand(6, generator=generator, dtype=torch.float64)
    logprobs = logits.log_softmax(-1)
    x = PairLogprobs(logprobs[:, 3], logprobs[:, 7], pair_columns={"win_rate_chosen": q})
    ours = build_loss("genrm")(x)
    theirs = F.cross_entropy(logits[:, [3, 7]], torch.stack([q, 1 - q], 1), reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    certain = PairLogprobs(x.policy_chosen, x.policy_rejected, pair_columns={"win_rate_chosen": torch.ones_like(q)})
    torch.testing.assert_close(build_loss("genrm")(certain), build_loss("cpo", beta=1.0, cpo_alpha=0.0)(x))


TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
CPU = ["trainer.accelerator=cpu", "trainer.precision=32", "model.encoder_seq_length=16", "model.micro_batch_size=8"]
CPU += ["model.global_batch_size=8"]
VERDICTS = [*CPU, "model.tokenizer.end_responses=false"]  # the words alone are scored


def little_world(tmp_path: Path) -> tuple[Path, list[tuple[str, dict]]]:
    """A tiny model that knows nothing, and pairs of words: even ones are better than odd ones, and five people say so,
    one of them against his will. The rows and their gold sides; the first 104 with their votes in ``train.jsonl``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from nemo_rpo.world.language import LanguageConfig
    from nemo_rpo.world.tokenizer import save_tokenizer

    torch.manual_seed(0)
    start = tmp_path / "start"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=32, **sizes)).save_pretrained(start)
    save_tokenizer(LanguageConfig(), start)
    draw, rows = random.Random(0), []
    for good in range(0, 24, 2):
        for bad in range(1, 24, 2):
            gold = draw.choice("ab")
            texts = (f"c{good}", f"c{bad}") if gold == "a" else (f"c{bad}", f"c{good}")
            votes = [
                {"annotator": f"w{k}", "vote": gold if draw.random() < eta else "ab"[gold == "a"]}
                for k, eta in enumerate((0.95, 0.9, 0.85, 0.8, 0.3))
            ]
            row = {"pair_id": f"{good}-{bad}", "prompt": "s0", "response_a": texts[0], "response_b": texts[1]}
            rows.append((gold, row | {"votes": votes}))
    draw.shuffle(rows)
    for name, part in (("train", rows[:104]), ("held", [(side, row | {"votes": []}) for side, row in rows[104:]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for _, row in part))
    (tmp_path / "mine.jinja").write_text("{{ first }} sep {{ second }} ")
    return start, rows


@pytest.mark.distributed
def test_from_votes_to_a_better_judge(tmp_path, capsys):
    """A tiny model judges, is trained on what is believed, and judges pairs that nobody has seen."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start, rows = little_world(tmp_path)
    gold = {row["pair_id"]: side for side, row in rows}

    def judge(run: Path, out: str, *files: str) -> dict[tuple[str, str], float]:
        block = {"name": "mine", "kind": "generative", "run": str(run), "prompt": "mine.jinja", "orders": "both"}
        block |= {"words": {"first": "s1", "second": "s2"}, "overrides": VERDICTS}
        (tmp_path / "judges.yaml").write_text(json.dumps({"judges": [block]}))
        given = [str(tmp_path / f"{name}.jsonl") for name in files]
        given += ["--judges", str(tmp_path / "judges.yaml"), "--out", str(tmp_path / out)]
        assert main(["judge", *given]) == 0, capsys.readouterr().err
        verdicts, _ = read_table(tmp_path / out / "verdicts.parquet")
        return {(row["pair"], row["shown_first"]): row["p_first"] for row in verdicts}

    def right(p_first: dict[tuple[str, str], float]) -> float:
        held = {row["pair_id"] for _, row in rows[104:]}
        found = [(p > 0.5) == (gold[pair] == first) for (pair, first), p in p_first.items() if pair in held]
        assert len(found) == 80
        return sum(found) / len(found)

    before = judge(start, "first", "train", "held")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    _, row = rows[0]
    ids = tokenizer(f"{row['response_a']} sep {row['response_b']}", return_tensors="pt").input_ids
    words = tokenizer.convert_tokens_to_ids(["s1", "s2"])
    with torch.no_grad():
        p = model(ids).logits[0, -1, words].softmax(0)[0].item()
    assert before[row["pair_id"], "a"] == pytest.approx(p, abs=1e-5) and not math.isclose(p, 0.5, abs_tol=1e-4)

    given = ["genrm", str(tmp_path / "train.jsonl"), "--judges", str(tmp_path / "judges.yaml")]
    given += ["--believed", str(tmp_path / "first"), "--out", str(tmp_path / "verdicts.jsonl")]
    assert main(given) == 0
    taught = [record.fields for record in read_records(tmp_path / "verdicts.jsonl")]
    assert len(taught) > 150 and {row["chosen"] for row in taught} == {"s1", "s2"}
    train = ["train", "--config-name", "genrm", f"pretrained_checkpoint.restore_from_path={start}", *VERDICTS]
    train += [f"exp_manager.explicit_log_dir={tmp_path / 'run'}", "model.tokenizer.use_chat_template=false"]
    train += [f"model.data.data_prefix.train={tmp_path / 'verdicts.jsonl'}", "trainer.dpo.max_epochs=6"]
    train += ["trainer.dpo.save_interval=0", "trainer.dpo.val_check_interval=0", "model.data.num_workers=0"]
    result = run_process(["-m", "nemo_rpo.cli", *train, "model.optim.lr=1e-2", "model.global_batch_size=16"])
    assert result.returncode == 0, result.stderr[-3000:]
    after = judge(tmp_path / "run", "second", "held")
    assert right(after) >= 0.9 > 0.7 >= right(before), (right(before), right(after))


@pytest.mark.distributed
def test_a_judge_learns_the_reasons_that_reach_the_believed_verdict(tmp_path, capsys):
    """STaR-DPO from votes to weights. Every question has answers for either side, and the judge comes to prefer those
    that end in the believed verdict."""
    start, _ = little_world(tmp_path)
    words = {"first": "s1", "second": "s3"}
    block = {"name": "mine", "kind": "generative", "run": str(start), "prompt": "mine.jinja", "words": words}
    (tmp_path / "believing.yaml").write_text(json.dumps({"judges": [block | {"overrides": VERDICTS}]}))

    def call(*arguments: str | Path) -> None:
        assert main([*map(str, arguments)]) == 0, capsys.readouterr().err

    def answer(path: str, body: dict, number: int) -> Any:
        return said(f"s{body['seed'] % 2 * 2} s{body['seed'] % 4 // 2 * 2 + 1}", chat=True)

    call("judge", tmp_path / "train.jsonl", "--judges", tmp_path / "believing.yaml", "--out", tmp_path / "believed")
    with FakeServer(answer) as server:
        block = {"name": "mine", "kind": "chat", "url": server.url, "prompt": "mine.jinja"}
        block |= {"words": words | {"tie": "sep"}, "pattern": r"\b(s1|s3|sep)\b"}
        (tmp_path / "reasoning.yaml").write_text(json.dumps({"judges": [block]}))
        genrm = ["genrm", tmp_path / "train.jsonl", "--judges", tmp_path / "reasoning.yaml", "--to"]
        call(*genrm, "prompts", "--out", tmp_path / "prompts.jsonl")
        given = ["--url", server.url, "--samples", "6", "--out", tmp_path / "answers.parquet"]
        call("sample", tmp_path / "prompts.jsonl", *given)
    given = ["--believed", tmp_path / "believed", "--responses", tmp_path / "answers.parquet"]
    call(*genrm, "rationales", *given, "--out", tmp_path / "rationales.jsonl")
    (start / "chat_template.jinja").write_text(TEMPLATE)
    train = ["train", "--config-name", "genrm_rationales", f"pretrained_checkpoint.restore_from_path={start}", *CPU]
    train += [f"exp_manager.explicit_log_dir={tmp_path / 'run'}", "trainer.dpo.max_epochs=6"]
    train += [f"model.data.data_prefix.train={tmp_path / 'rationales.jsonl'}", "model.global_batch_size=16"]
    train += ["trainer.dpo.save_interval=0", "trainer.dpo.val_check_interval=0", "model.data.num_workers=0"]
    result = run_process(["-m", "nemo_rpo.cli", *train, "model.optim.lr=1e-2"])
    assert result.returncode == 0, result.stderr[-3000:]
    right = [row["acc"] for row in read_metrics(tmp_path / "run") if row["split"] == "train"]
    assert sum(right[-10:]) / 10 >= 0.8 and right[0] == 0.5
