"""A reward head is read where a response ends, goes into checkpoints that every layout reads, and into the export."""

from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import loss_world
import pyarrow.parquet as parquet
import torch
from safetensors.torch import load_file, save_file
from torchrun import run_process, run_ranks

from nemo_rpo.cli import main
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.export.group_labels import check_group, preference
from nemo_rpo.judging.judges.reward_judge import RewardModelJudge
from nemo_rpo.judging.judging_settings import RewardJudge
from nemo_rpo.judging.verdicts import Shown
from nemo_rpo.megatron.batch.responses import ResponseTokens
from nemo_rpo.megatron.checkpoint.huggingface.reward_head_file import REWARD_HEAD_FILE, load_reward_head
from nemo_rpo.megatron.network.reward_head import RewardHead
from nemo_rpo.report.run import read_run
from nemo_rpo.report.source import Source
from nemo_rpo.report.tastes import sections
from nemo_rpo.training.logs.metrics import read_metrics

HERE = Path(__file__).parent
RUN = [
    "model.rpo.base_loss=gpm",
    "model.rpo.loss_options={gated: true}",
    "model.rpo.embedding_width=4",
    "model.global_batch_size=16",
    "trainer.dpo.save_interval=2",
    "model.optim.sched.max_steps=8",
    "exp_manager.checkpoint_callback_params.save_hf_on_train_end=true",
]
PAL = ["model.rpo.base_loss=pal", *RUN[2:]]
BATTLES = [
    "model.rpo.base_loss=p2l_bag",
    *RUN[3:],
    f"model.data.players=[{','.join(loss_world.PLAYERS)}]",
    "model.data.data_prefix.train={world}/battles.jsonl",
]
SPLIT = ["model.tensor_model_parallel_size=2", "model.pipeline_model_parallel_size=2", "model.sequence_parallel=true"]


def test_each_output_is_read_at_its_place() -> None:
    labels = torch.tensor([[-100, -100, 5, 6, -100], [-100, 7, -100, -100, -100]])  # the second of one token
    responses = ResponseTokens.of_labels(labels)
    head = RewardHead(3, {"score": 1, "embedding": 4, "gate": 2}, seed=0)
    torch.nn.init.normal_(head.score.weight), torch.nn.init.normal_(head.gate.weight)
    hidden = torch.randn(5, 2, 3)
    found = head(hidden, responses, sequence_parallel=False, group=None)
    last, before = torch.stack((hidden[3, 0], hidden[1, 1])), torch.stack((hidden[1, 0], hidden[0, 1]))
    torch.testing.assert_close(found["score"], (last @ head.score.weight.t()).squeeze(-1))
    torch.testing.assert_close(found["embedding"], last @ head.embedding.weight.t())
    torch.testing.assert_close(found["gate"], (before @ head.gate.weight.t()).softmax(-1))


def test_it_starts_without_an_opinion_and_the_same_everywhere() -> None:
    before = torch.get_rng_state()
    head, again = (RewardHead(8, {"score": 1, "embedding": 4}, seed=3) for _ in range(2))
    assert not head.score.weight.any() and head.embedding.weight.any()
    assert torch.equal(head.embedding.weight, again.embedding.weight)
    assert torch.equal(torch.get_rng_state(), before), "every rank draws the same numbers whichever has the head"


def test_an_exported_head_is_read_back(tmp_path: Path) -> None:
    """Without it an evaluation of the folder judges by a head of zeros: every margin is 0, and nobody is told."""
    one, other = (torch.nn.Module() for _ in "ab")
    one.reward_head, other.reward_head = (RewardHead(8, {"score": 1, name: 2}, seed=0) for name in ("scores", "gate"))
    for weight in one.parameters():
        torch.nn.init.normal_(weight)
    save_file(one.reward_head.state_dict(), tmp_path / REWARD_HEAD_FILE)
    load_reward_head([other], tmp_path)
    assert torch.equal(other.reward_head.score.weight, one.reward_head.score.weight)
    assert not other.reward_head.gate.weight.any()  # the file has none
    load_reward_head([other], tmp_path / "nothing here")
    (tmp_path / REWARD_HEAD_FILE).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"reward_head.safetensors cannot be read"):
        load_reward_head([other], tmp_path)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``split`` has begun on four ranks and gone on on one; ``whole`` is one rank's from the start."""
    world, folder = loss_world.make(tmp_path_factory.mktemp("loss_world")), tmp_path_factory.mktemp("ran")

    def run(ranks: int, *runs: tuple[str, list[str]]) -> None:
        run_ranks(HERE / "ranks_reward_head.py", ranks, world, folder, json.dumps(runs), timeout=500)

    (folder / "world.json").write_text(json.dumps(str(world)))
    battles = [setting.format(world=world) for setting in BATTLES]
    run(
        4,
        ("split", [*RUN, *SPLIT, "trainer.dpo.max_steps=2"]),
        ("tastes split", [*PAL, *SPLIT, "trainer.dpo.max_steps=2"]),
        ("battles", [*battles, *SPLIT, "trainer.dpo.max_steps=2"]),
    )
    checkpoint = folder / "split/checkpoints/step=00000002"
    run(
        1,
        ("split", [*RUN, "trainer.dpo.max_steps=4"]),
        ("whole", [*RUN, "trainer.dpo.max_steps=4"]),
        ("tastes split", [*PAL, "trainer.dpo.max_steps=4"]),
        ("battles", [*battles, "trainer.dpo.max_steps=4"]),
        ("tastes halves", [*PAL, "trainer.dpo.max_steps=2"]),
        ("tastes halves", [*PAL, "trainer.dpo.max_steps=4"]),
        ("tastes whole", [*PAL, "trainer.dpo.max_steps=4"]),
        (
            "of its weights",
            [
                "model.rpo.base_loss=dpo",
                "trainer.dpo.max_steps=1",
                f"pretrained_checkpoint.restore_from_path={checkpoint}",
                f"model.tokenizer.type={world / 'model'}",
            ],
        ),
        (
            "another head on its weights",
            [
                "model.rpo.base_loss=bt",
                "trainer.dpo.max_steps=1",
                f"pretrained_checkpoint.restore_from_path={checkpoint}",
                f"model.tokenizer.type={world / 'model'}",
            ],
        ),
    )
    return folder


@pytest.mark.distributed
def test_another_layout_goes_on_where_the_first_one_stopped(out: Path) -> None:
    broken, whole = ([row["loss"] for row in read_metrics(out / name)] for name in ("split", "whole"))
    assert len(broken) == len(whole) == 4 and broken == pytest.approx(whole, abs=1e-5)


@pytest.mark.distributed
def test_the_export_has_it_beside_the_model(out: Path) -> None:
    broken, whole = (load_file(out / name / "hf/reward_head.safetensors") for name in ("split", "whole"))
    assert {name: list(weight.shape) for name, weight in whole.items()} == {
        "embedding.weight": [4, 32],
        "gate.weight": [2, 32],
    }
    for name, weight in whole.items():
        torch.testing.assert_close(broken[name], weight, atol=1e-5, rtol=0)
    names = load_file(out / "whole/hf/model.safetensors")
    assert not any("reward" in name or "embedding.weight" == name for name in names)


def weights_of(run: Path) -> tuple[list[str], torch.Tensor]:
    with (run / "annotators.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["eta", "weight_1", "weight_2"]
    return [row["id"] for row in rows], torch.tensor([[float(row[name]) for name in names] for row in rows])


@pytest.mark.distributed
def test_groups_of_taste_go_on_bitwise_and_under_another_layout(out: Path) -> None:
    split, halves, whole = (
        [row["loss"] for row in read_metrics(out / f"tastes {name}")] for name in ("split", "halves", "whole")
    )
    assert len(whole) == 4 and halves == whole and split == pytest.approx(whole, abs=1e-5)
    (names, found), (_, again), (_, elsewhere) = (weights_of(out / f"tastes {n}") for n in ("whole", "halves", "split"))
    assert torch.equal(found, again) and len(names) > 3
    torch.testing.assert_close(elsewhere, found, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 1:].sum(1), torch.ones(len(names)), atol=2e-6, rtol=0)
    assert found[:, 1].max() > 0.6 > 0.4 > found[:, 1].min(), "the groups have parted"
    assert list(load_file(out / "tastes whole/hf/reward_head.safetensors")["scores.weight"].shape) == [2, 32]


@pytest.mark.distributed
def test_a_groups_labels_and_verdicts_come_out_of_the_run(out: Path, tmp_path: Path) -> None:
    run = read_run(out / "tastes whole")
    w, sign = run.labels.w_of_group, run.labels.sign
    own = (run.annotators.weight[run.labels.annotator] * np.where(sign[:, None] > 0, w, 1 - w)).sum(1)
    np.testing.assert_allclose(run.labels.w_last, own, atol=1e-6)
    exported = {}
    for group in (1, 2):
        path = tmp_path / f"{group}.jsonl"
        assert (
            main(["export", str(run.folder), "group", "--group", str(group), "--to", "votes", "--out", str(path)]) == 0
        )
        exported[group] = {row["pair_id"]: row for row in map(json.loads, path.read_text().splitlines())}
    source = {pair.key: pair for pair in Source(run)}
    assert exported[1].keys() == {key for key, pair in source.items() if len(pair.labels)}
    for group, rows in exported.items():
        for key, row in rows.items():
            pair = source[key]
            [vote] = row["votes"]
            assert vote["annotator"] == f"group {group}"
            first = preference(run, pair, group - 1)
            assert vote["vote"] == ("a" if first >= 0.5 else "b") and row["weight"] == pytest.approx(
                max(first, 1 - first), abs=1e-6
            )
    with pytest.raises(ConfigError, match="--group must be a number from 1 to 2"):
        check_group(run, 3)
    [section] = sections(run)
    assert section.title == "Groups of taste" and len(section.blocks) >= 4


@pytest.mark.distributed
def test_its_weights_start_a_policy_and_another_head(out: Path) -> None:
    for name in ("of its weights", "another head on its weights"):
        [first] = read_metrics(out / name)
        assert first["loss"] == pytest.approx(0.693147, abs=1e-4), name


@pytest.mark.distributed
def test_a_reward_models_figures(out: Path) -> None:
    row = read_metrics(out / "whole")[-1]
    assert "logps_chosen_mean" not in row and 0 <= row["acc"] <= 1
    assert row["rewards_rejected_mean"] == 0
    # They differ by the pairs whose votes are even, which have no better response.
    assert row["margin"] == pytest.approx(row["rewards_chosen_mean"], abs=0.05)


def cli(*arguments: object, ranks: int = 1, check: bool = True) -> str:
    ran = run_process(["-m", "nemo_rpo.cli", *map(str, arguments)], ranks=ranks if ranks > 1 else None, timeout=300)
    assert (ran.returncode == 0) == check, ran.stderr[-3000:]
    return ran.stderr if not check else ran.stdout


def margins(run: Path, data: Path, out: Path) -> dict[str, float]:
    """Δ of each pair, chosen over rejected, as ``nemo-rpo evaluate`` has it."""
    cli("evaluate", run, data, "--scores", out, "--bootstrap", 1)
    table = parquet.read_table(out)
    return dict(zip(table["pair_id"].to_pylist(), table["delta"].to_pylist(), strict=True))


def combined_with_a_program(run: Path, data: Path, rows: dict[str, dict], tmp_path: Path) -> None:
    """A judge of ``kind: combined``: a response is as good as the log-probability that the reward model and a program
    both find it good enough, the program counting a word of the language."""
    from nemo_rpo.judging.collecting import judges_from
    from nemo_rpo.judging.judged_pairs import pairs_to_judge
    from nemo_rpo.judging.judging_settings import judges_of
    from nemo_rpo.judging.orders import shown

    score = {
        (row["name"], "ab"[row["response"]]): row["score"]
        for row in parquet.read_table(tmp_path / f"{run.name}1.parquet").to_pylist()
    }
    pairs = [pair for pair in pairs_to_judge([data])[0] if len({str(pair.a), str(pair.b)}) == 2][:8]
    word = str(pairs[0].a).split()[0]
    program = {"call": "nemo_rpo.judging.programs.answers:matches", "arguments": {"pattern": word}}
    block = {"name": "both", "kind": "combined", "rewards": [{"run": str(run)}, program], "quantile": 0.5}
    [judge] = judges_from(judges_of([block], tmp_path), tmp_path)
    asked = shown(pairs, "both", "none", 0)
    judge.look_at(asked)
    found = {verdict.pair: verdict for verdict in judge.judge(asked)}
    texts = {
        (pair.pair_id, side): (str(pair.prompt), str(text))
        for pair in pairs
        for side, text in (("a", pair.a), ("b", pair.b))
    }
    rewards = {text: (score[key], float(word in text[1])) for key, text in texts.items()}

    def good(text: tuple[str, str]) -> float:
        of_prompt = [one for other, one in rewards.items() if other[0] == text[0]]
        measured = of_prompt if len(of_prompt) >= 4 else list(rewards.values())
        references = [statistics.median(column) for column in zip(*measured, strict=True)]
        return sum(-math.log1p(math.exp(ref - r)) for r, ref in zip(rewards[text], references, strict=True))

    assert len(found) == 8 and any(abs(reward) > 1e-3 for reward, _ in rewards.values())
    for pair in pairs:
        verdict, (a, b) = found[pair.pair_id], (texts[pair.pair_id, side] for side in "ab")
        assert json.loads(verdict.raw) == [pytest.approx(list(rewards[text]), abs=1e-5) for text in (a, b)]
        assert verdict.p_first == pytest.approx(1 / (1 + math.exp(good(b) - good(a))), abs=1e-5)
        assert verdict.said == ("first" if verdict.p_first > 0.5 else "second")


@pytest.mark.distributed
def test_rewards_of_responses_are_those_of_pairs_under_every_layout(out: Path, tmp_path: Path) -> None:
    """Bradley-Terry: Δ is their difference. A preference model: the score of each of two is Δ, turned to its side."""
    data = Path(json.loads((out / "world.json").read_text()))
    rows = {row["pair_id"]: row for row in map(json.loads, (data / "train.jsonl").read_text().splitlines())}
    for run, more in ((out / "another head on its weights", {}), (out / "whole", {"embedding": 4, "gate": 2})):
        delta = margins(run, data / "train.jsonl", tmp_path / f"{run.name}.parquet")
        split = ["model.tensor_model_parallel_size=2", "model.sequence_parallel=true"]
        layouts = {2: split} if more else {1: [], 2: split}
        found = {}
        for ranks, layout in layouts.items():
            path = tmp_path / f"{run.name}{ranks}.parquet"
            said = cli("score", "--rewards", run, "--data", data / "train.jsonl", "--out", path, *layout, ranks=ranks)
            assert f"{2 * len(rows)} responses" in said
            found[ranks] = parquet.read_table(path).to_pylist()
        for one, two in zip(found[min(found)], found[2], strict=True):
            assert one["score"] == pytest.approx(two["score"], abs=1e-5) and one["tokens"] == two["tokens"] > 0
            assert {name: len(one[name]) for name in more} == more
        by_name: dict[str, list[float]] = {}
        for record in found[2]:
            by_name.setdefault(record["name"], []).append(record["score"])
        checked = 0
        for name, (first, second) in by_name.items():
            if name in delta:  # evaluation calls chosen what most votes prefer, in a tie the first
                votes = [vote["vote"] for vote in rows[name]["votes"]]
                sign = -1 if votes.count("b") > votes.count("a") else 1
                assert delta[name] * sign == pytest.approx(first - second if not more else first, abs=1e-5)
                assert not more or second == pytest.approx(-first, abs=1e-5)
                checked += abs(delta[name]) > 1e-5
        assert checked > 20
    combined_with_a_program(out / "another head on its weights", data / "train.jsonl", rows, tmp_path)
    single = tmp_path / "single.jsonl"
    texts = [{"id": "x", "prompt": row["prompt"], "response": row["response_b"]} for row in rows.values()]
    single.write_text("".join(f"{json.dumps(text)}\n" for text in texts[:3]))
    cli("score", "--rewards", out / "another head on its weights", "--data", single, "--out", tmp_path / "x.jsonl")
    alone = [json.loads(line)["score"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    run = out / "another head on its weights"
    known = [
        r["score"] for r in parquet.read_table(tmp_path / f"{run.name}1.parquet").to_pylist() if r["response"] == 1
    ]
    assert alone == pytest.approx(known[:3], abs=1e-5)


@pytest.mark.distributed
def test_a_run_of_battles_ranks_its_models_by_the_prompt(out: Path, tmp_path: Path) -> None:
    """The strengths are the export's head at the prompt's last token, the models those that the checkpoint lists."""
    run, players = out / "battles", list(loss_world.PLAYERS)
    checkpoint = max((run / "checkpoints").glob("step=*"))
    assert json.loads((checkpoint / "run.json").read_text())["players"] == players
    weight = load_file(run / "hf/reward_head.safetensors")["coefficients.weight"]
    assert list(weight.shape) == [len(players), 32] and weight.any()
    prompts, costs = tmp_path / "prompts.jsonl", tmp_path / "costs.csv"
    rows = [
        {"prompt": row["prompt"], "topic": "even" if i % 2 else "odd"} for i, row in enumerate(loss_world.battles())
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    costs.write_text("model,cost\n" + "".join(f"{name},{1 + i}\n" for i, name in enumerate(players)))
    asked = ["rank", prompts, "--by-prompt", run, "--costs", costs, "--budget", 1.5, "--bootstrap", 5]
    said = json.loads(cli(*asked, "--json", "--out", tmp_path / "strengths.jsonl", "--plot", tmp_path / "topics.svg"))
    assert {name: len(board) for name, board in said["boards"].items()} == {"all": 3, "even": 3, "odd": 3}
    assert said["routing"]["cost"] <= 1.5 + 1e-6 and sum(said["routing"]["share"].values()) == pytest.approx(1)
    assert (tmp_path / "topics.svg").read_text().startswith("<svg") or "svg" in (tmp_path / "topics.svg").read_text()[
        :200
    ]
    strengths = [json.loads(line)["strengths"] for line in (tmp_path / "strengths.jsonl").read_text().splitlines()]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (of.from_pretrained(run / "hf") for of in (AutoModelForCausalLM, AutoTokenizer))
    for row, found in list(zip(rows, strengths, strict=False))[:3]:
        ids = [tokenizer.bos_token_id, *tokenizer(row["prompt"]).input_ids]
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        torch.testing.assert_close(
            torch.tensor(list(found.values())), weight.float() @ hidden.float(), atol=1e-4, rtol=0
        )
    said = cli("rank", prompts, "--by-prompt", out / "whole", check=False)
    assert "was trained with the loss 'gpm', which ranks no models by the prompt" in said


@pytest.mark.distributed
def test_what_has_no_head_gives_no_reward(out: Path, tmp_path: Path) -> None:
    data = Path(json.loads((out / "world.json").read_text())) / "train.jsonl"
    asked = ("--data", data, "--out", tmp_path / "x.jsonl")
    said = cli("score", "--rewards", out / "of its weights", *asked, check=False)
    assert "error: the loss 'dpo' trains no reward model: name a run of one" in said
    said = cli("score", "--rewards", out / "of its weights", *asked, "model.rpo.base_loss=bt", check=False)
    assert "has no head that gives 'score' of width 1 (it has none): name a reward model" in said
    assert "Traceback" not in said and not (tmp_path / "x.jsonl").exists()


@pytest.mark.distributed
def test_a_preference_model_judges_pairs(out: Path, tmp_path: Path) -> None:
    """It says the side that its margin is on, whoever labelled what; turned round it says the other one."""
    rows = [row for row in loss_world.rows()[:12] if row["votes"][0]["vote"] != "tie"]
    for i, row in enumerate(rows):
        row["pair_id"], row["votes"] = f"p{i}", row["votes"][:1]
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    delta = margins(out / "whole", data, tmp_path / "scores.parquet")
    margin = {row["pair_id"]: delta[row["pair_id"]] * (1 if row["votes"][0]["vote"] == "a" else -1) for row in rows}
    shown = [Shown(r["pair_id"], r["prompt"], r["response_a"], r["response_b"], "") for r in rows]
    shown += [s._replace(pair=f"-{s.pair}", first=s.second, second=s.first) for s in shown]
    judge = RewardModelJudge(RewardJudge(name="rm", run=str(out / "whole")), tmp_path / "log", "judges[0]")
    said = {verdict.pair: verdict for verdict in judge.judge(shown)}
    assert {said[name].said for name in margin} == {"first", "second"}
    for name, value in margin.items():
        assert said[name].p_first == pytest.approx(1 / (1 + np.exp(-value)), abs=1e-5)
        assert said[f"-{name}"].p_first == pytest.approx(1 - said[name].p_first, abs=1e-5)
        assert {said[name].said, said[f"-{name}"].said} == {"first", "second"}
    broken = RewardModelJudge(RewardJudge(name="rm", run=str(tmp_path)), tmp_path / "log", "judges[0]")
    with pytest.raises(ConfigError, match=r"judges\[0\]\.run: .* cannot judge \("):
        list(broken.judge(shown))
