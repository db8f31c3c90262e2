"""Whole loops through the command: their files, what a second start does, and what is refused before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from nemo_rpo.data.files.stage import read_table

from . import worlds

pytestmark = pytest.mark.distributed


def settings_of(folder: Path, number: int, fit: int = 1) -> dict:
    return yaml.safe_load((folder / f"round={number:03d}/fit={fit}/config.yaml").read_text())


def test_each_round_goes_on_from_the_last(world: Path, unbroken: Path) -> None:
    first, second = settings_of(unbroken, 1), settings_of(unbroken, 2)
    assert first["pretrained_checkpoint"]["restore_from_path"] == str(world / "model")
    assert first["model"]["rpo"]["believe_from"] is None and first["model"]["rpo"]["first_policy"] is None
    last = unbroken / "round=001/fit=1"
    assert second["pretrained_checkpoint"]["restore_from_path"] == str(last / "hf")
    assert second["model"]["rpo"]["believe_from"] == str(last)
    assert second["model"]["rpo"]["first_policy"] == str(world / "model")
    assert second["model"]["rpo"]["reference_from"] is None  # the start is the reference
    drawn = [{row["prompt"] for row in read_table(unbroken / f"round=00{t}/responses.parquet")[0]} for t in (1, 2)]
    assert len(drawn[0]) == len(drawn[1]) == 44 and len(drawn[0] & drawn[1]) >= 12  # the held-out ones among them


def test_three_judges_vote_on_a_pair_and_all_on_an_anchor(unbroken: Path) -> None:
    rows, _ = read_table(unbroken / "round=001/verdicts.parquet")
    judges: dict[str, set] = {}
    for row in rows:
        judges.setdefault(row["pair"], set()).add(row["judge"])
    assert {len(of) for of in judges.values()} == {3} and len(set.union(*judges.values())) == 4
    anchors, _ = read_table(unbroken / "round=001/anchors/verdicts.parquet")
    assert len(anchors) == 30 * 4


def test_anchors_are_evidence_in_the_training_file_and_held_out_prompts_are_not_in_it(unbroken: Path) -> None:
    train, held_out = (
        [json.loads(line) for line in (unbroken / f"round=001/{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    )
    assert sum("gold" in row for row in train) == 30 and not any("gold" in row for row in held_out)
    assert not {row["pair_id"] for row in train} & {row["pair_id"] for row in held_out}
    facts = json.loads((unbroken / "round=001/believed.json").read_text())
    assert facts["anchors"]["anchors"] == 30 and facts["anchors"]["right"] > 0.75


def test_a_finished_round_is_not_taken_for_one_of_other_settings(world: Path, one: Path) -> None:
    said = worlds.iterate(world, one, 2, rounds=1, believe={"carry": 0.1})
    assert said.splitlines()[-1].startswith(f"error: {one}/round=001/fit=1 was trained with other settings or data")


@pytest.mark.parametrize("lost", ["pairs.parquet", "believed.parquet", "fit=1", "evaluation.json"])
def test_a_stage_that_is_gone_is_made_again_and_the_same(world: Path, tmp_path: Path, lost: str, one: Path) -> None:
    """One round, in a place of its own: a loop's paths are part of its files."""
    folder = one
    expected, before = worlds.contents(folder), worlds.written(folder)
    shutil.rmtree(folder / f"round=001/{lost}") if lost == "fit=1" else (folder / f"round=001/{lost}").unlink()
    worlds.iterate(world, folder, rounds=1)
    found = worlds.contents(folder)
    assert found == expected
    assert worlds.written(folder)["round=001/responses.parquet"] == before["round=001/responses.parquet"]


@pytest.fixture(scope="module")
def one(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "loop"
    worlds.iterate(world, folder, rounds=1)
    return folder


def test_judges_worse_than_a_coin_are_refused_before_anything_is_trained(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "loop"
    bad = [worlds.judge(k, 0.25) for k in range(4)]
    anchors = worlds.anchors(world) | {"evidence": False}
    said = worlds.iterate(world, folder, 2, judges=bad, anchors=anchors)
    last = said.splitlines()[-1]
    assert last.startswith("error: round 1: the judges are right on 0.") and "online.anchors.min_accuracy=0.6" in last
    assert not list(folder.glob("round=*/fit=*"))
    # The same verdicts, and the anchors say whom to believe.
    worlds.iterate(world, tmp_path / "won", judges=bad, anchors=worlds.anchors(world), rounds=1)
    facts = json.loads((tmp_path / "won/round=001/believed.json").read_text())
    assert facts["anchors"]["right"] > 0.6


def test_best_against_worst_is_trained_on_with_reliabilities_of_all_pairs(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "loop"
    worlds.iterate(world, folder, pairs="best_worst", rounds=1)
    rpo = settings_of(folder, 1)["model"]["rpo"]
    assert rpo["freeze_eta"] and rpo["believe_from"] == str(folder / "round=001/annotators.csv")
    judged, _ = read_table(folder / "round=001/believed.parquet")
    trained = [json.loads(line)["pair_id"] for line in (folder / "round=001/train.jsonl").read_text().splitlines()]
    prompts = [name.rpartition(":")[0] for name in trained]
    assert len(prompts) == len(set(prompts)) and len(judged) > 2 * len(trained)


def test_an_extragradient_step_is_two_fits_from_one_policy(world: Path, tmp_path: Path) -> None:
    """The second is against samples of what the first made; the reference of both is the round's start."""
    folder = tmp_path / "loop"
    worlds.iterate(world, folder, rounds=1, train={"recipe": "egpo"})
    ahead, step = (settings_of(folder, 1, fit) for fit in (1, 2))
    for cfg in (ahead, step):
        assert cfg["pretrained_checkpoint"]["restore_from_path"] == str(world / "model")
        assert cfg["model"]["rpo"]["base_loss"] == "egpo" and not cfg["model"]["rpo"]["enabled"]
    data = [cfg["model"]["data"]["data_prefix"]["train"] for cfg in (ahead, step)]
    assert data == [str(folder / f"round=001/{place}train_believed.jsonl") for place in ("", "opponent=2/")]
    ours, theirs = ({row["pair_id"]: row for row in map(json.loads, open(path))} for path in data)
    assert ours.keys() == theirs.keys()
    assert all(ours[name]["chosen"] == theirs[name]["chosen"] for name in ours)
    assert any(ours[name]["win_rate_chosen"] != theirs[name]["win_rate_chosen"] for name in ours)
    assert worlds.evaluation(folder, 1)["policy"] == str(folder / "round=001/fit=2/hf")


def test_a_loop_ends_where_it_has_gone_too_far(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "loop"
    said = worlds.iterate(world, folder, stop={"kl_to_start": 1e-6})
    assert "the loop ends after round 1: the policy is" in said and not (folder / "round=002").exists()
    assert "the loop has ended" in (folder / "report.html").read_text().lower()
