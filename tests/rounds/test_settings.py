"""Settings of a loop: what each recipe trains on what, what is refused in one line, and when there is no next round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT

from nemo_rpo.errors import ConfigError, TrainingError
from nemo_rpo.evaluation.checkpoint import target_of
from nemo_rpo.judging.judged_pairs import JudgedPair
from nemo_rpo.judging.orders import asked_about
from nemo_rpo.rounds.fitting import Fit, check_fit, name_of, run_fit
from nemo_rpo.rounds.fitting import _overrides as overrides
from nemo_rpo.rounds.measuring import Measured, why_stop
from nemo_rpo.rounds.policies import Policies
from nemo_rpo.rounds.recipes import RECIPES
from nemo_rpo.rounds.rounds_settings import Plan, StopSettings, plan_of, read_plan
from nemo_rpo.rounds.training_rows import best_against_worst, rates

from . import worlds


@pytest.fixture
def online(world: Path, tmp_path: Path) -> dict:
    return worlds.block(world, tmp_path / "loop")


def policies(plan: Plan, number: int, place: int = 1) -> tuple[str, str | None, str | None]:
    """Start, reference and base that a fit is given, relative to the loop."""
    fit = Fit(plan, number, place, Path("train"), Path("val"), "")
    given = dict(setting.split("=", 1) for setting in overrides(fit))
    names = ("pretrained_checkpoint.restore_from_path", "model.rpo.reference_from", "model.rpo.previous_iterate")

    def short(path: str | None) -> str | None:
        if path is None:
            return None
        return "first" if path == plan.online.start else path.removeprefix(f"{plan.folder}/").removesuffix("/hf")

    return tuple(short(given.get(name)) for name in names)


LAST, AHEAD = "round=001/fit=1", "round=002/fit=1"


@pytest.mark.parametrize(
    "recipe, place, expected",
    [
        ("re_dpo", 1, (LAST, None, None)),
        ("online_dpo", 1, (LAST, "first", None)),
        ("sppo", 1, (LAST, None, None)),
        ("dno", 1, (LAST, None, None)),
        ("gpo", 1, (LAST, None, None)),
        ("inpo", 1, (LAST, "first", LAST)),
        ("onpo", 1, (LAST, None, None)),
        ("onpo", 2, (AHEAD, None, None)),
        ("egpo", 1, ("round=001/fit=2", None, None)),
        ("egpo", 2, ("round=001/fit=2", None, None)),
    ],
)
def test_a_recipe_begins_each_fit_where_its_paper_does(online: dict, recipe: str, place: int, expected: tuple) -> None:
    plan = plan_of(online | {"train": online["train"] | {"recipe": recipe}}, Path())
    assert policies(plan, 2, place) == expected
    start, reference, base = policies(plan, 1, place)
    assert start == ("first" if place == 1 or recipe != "onpo" else LAST) and reference is None and base is None


def test_every_recipe_has_settings_that_a_run_takes(online: dict, tmp_path: Path) -> None:
    """The fits, and the engine that samples with them."""
    for recipe, fits in RECIPES.items():
        plan = plan_of(online | {"train": online["train"] | {"recipe": recipe}}, Path())
        for place in range(1, len(fits) + 1):
            check_fit(plan, place)
        with Policies(plan)._sampler(tmp_path / "log") as sampler:
            target_of(Path(online["start"]), sampler.config, None, sampler.overrides, needs_reference=False)


def test_options_of_a_recipes_loss_stand_with_those_of_the_training(online: dict) -> None:
    """Nothing that is made of the settings takes them for another loss's: the fit, its name, and who samples."""
    train = {
        "recipe": "onpo",
        "overrides": [*online["train"].get("overrides", []), "model.rpo.loss_options={step_size: 2}"],
    }
    plan = plan_of(online | {"train": online["train"] | train}, Path())
    for place in (1, 2):
        check_fit(plan, place)
    names = {name_of(Fit(plan, 1, place, Path("train"), Path("val"), "")) for place in (1, 2)}
    assert len(names) == 2
    with Policies(plan)._sampler(Path("log")):
        pass


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"round": 3}, "online has no setting 'round'; did you mean 'rounds'?"),
        ({"prompts": {"per_rond": 3}}, "online.prompts has no setting 'per_rond'; did you mean 'per_round'?"),
        ({"start": "nowhere"}, "online.start must be a Hugging Face folder; there is no nowhere/config.json"),
        ({"judges": []}, "online.judges must list at least one judge"),
        ({"judges_a_pair": 9}, "online.judges_a_pair=9, but there are 4 judges"),
        ({"sample": {"samples": 1}}, "online.sample.samples must be at least 2"),
        ({"sample": {"url": "http://x"}}, "online.sample.sampler=engine asks no server: unset online.sample.url"),
        ({"sample": {"temperature": 0}}, "online.sample.temperature must be above 0"),
        ({"train": {"recipe": "ipno"}}, "online.train.recipe is 'ipno'; there are re_dpo, "),
        ({"train": {"launch": "srun"}}, "online.train.launch must have {train} as a word of its own"),
        ({"train": {"fits": [{"start": "next"}]}}, "online.train.fits[0].start is 'next'; it can be first, last, "),
        ({"train": {"fits": [{"base": "this/1"}]}}, "online.train.fits[0].base is 'this/1', but no such fit is done"),
        ({"train": {"fits": [{"opponent": "this/1"}]}}, "online.train.fits[0].opponent is 'this/1'; it can be self or"),
        ({"train": {"fits": [{"los": "dpo"}]}}, "online.train.fits[0] has no setting 'los'; did you mean 'loss'?"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting(online: dict, changed: dict, said: str) -> None:
    for name, value in changed.items():
        online[name] = online.get(name, {}) | value if isinstance(value, dict) else value
    with pytest.raises(ConfigError) as caught:
        plan_of(online, Path())
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_file_holds_one_block_and_overrides_come_over_it(online: dict) -> None:
    plan = plan_of(online, Path(), {"rounds": 7, "train.recipe": "inpo", "online.stop.kl_to_start": 9})
    assert plan.online.rounds == 7 and plan.fits[0].loss == "inpo" and plan.online.stop.kl_to_start == 9
    with pytest.raises(ConfigError, match="online has no block 'trian'"):
        plan_of(online, Path(), {"trian.recipe": "inpo"})


def test_the_recipe_of_a_cluster_is_read(world: Path, tmp_path: Path) -> None:
    changed = {"start": str(world / "model"), "folder": str(tmp_path)}
    plan = read_plan(ROOT / "conf/loops/three_judges.yaml", changed)
    assert [judge.kind for judge in plan.judges] == ["chat", "chat", "program"] and plan.measuring == plan.judges
    check_fit(plan, 1)


def test_a_launcher_that_fails_or_does_not_wait_is_named(online: dict, tmp_path: Path) -> None:
    for launch, said in (("false {train}", "ended with status 1"), ("true {train}", "it must wait")):
        plan = plan_of(online | {"train": online["train"] | {"launch": launch}}, Path())
        with pytest.raises(TrainingError, match=said):
            run_fit(Fit(plan, 1, 1, tmp_path / "t", tmp_path / "v", ""))
    plan = plan_of(online | {"train": online["train"] | {"launch": "not-a-program {train}"}}, Path())
    with pytest.raises(ConfigError, match="launch cannot be run"):
        run_fit(Fit(plan, 1, 1, tmp_path / "t", tmp_path / "v", ""))


@pytest.mark.parametrize("checkpoint", [None, ".writing-step=00000002", "step=00000002"])
def test_a_fit_killed_before_its_first_checkpoint_leaves_no_metrics(checkpoint, online: dict, tmp_path: Path) -> None:
    plan = plan_of(online | {"train": online["train"] | {"launch": "true {train}"}, "folder": str(tmp_path)}, Path())
    fit = Fit(plan, 1, 1, tmp_path / "t", tmp_path / "v", "")
    fit.folder.mkdir(parents=True)
    (fit.folder / "metrics.jsonl").write_text("{}\n")
    if checkpoint is not None:
        (fit.folder / "checkpoints" / checkpoint).mkdir(parents=True)
    with pytest.raises(TrainingError, match="it must wait"):
        run_fit(fit)
    assert (fit.folder / "metrics.jsonl").exists() == (checkpoint == "step=00000002")


def test_a_loop_stops_by_distance_and_by_a_fallen_win_rate() -> None:
    def measured(number: int, win: float, kl: float | None = 1.0) -> Measured:
        return Measured(number, f"p{number}", win, 0, 1, 10, kl, None, None)

    stop = StopSettings(kl_to_start=5, win_rate_drop=0.02)
    assert why_stop([measured(1, 0.6), measured(2, 0.59)], stop) is None
    assert "0.600 in round 1 to 0.570" in why_stop([measured(1, 0.6), measured(2, 0.57)], stop)
    assert "the policy to take is p1" in why_stop([measured(1, 0.6), measured(2, 0.57)], stop)
    assert "above online.stop.kl_to_start=5" in why_stop([measured(1, 0.6, 5.1)], stop)
    assert why_stop([measured(1, 0.6, None), measured(2, 0.1, 99)], replace(stop, kl_to_start=None)) is not None
    assert why_stop([measured(1, 0.6), measured(2, 0.1, 99)], StopSettings(None, None)) is None


def test_best_and_worst_are_those_of_the_win_rates() -> None:
    texts = {0: "a", 1: "b", 2: "c"}
    pairs = [JudgedPair(f"p:{i}-{j}", "x", texts[i], texts[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    p_a = {"p:0-1": 0.9, "p:0-2": 0.8, "p:1-2": 0.2}  # a beats both, c beats b
    assert [pair.pair_id for pair in best_against_worst(pairs, p_a)] == ["p:0-1"]
    assert rates(pairs, p_a).win_rate[0, 0] == pytest.approx((0.5 + 0.9 + 0.8) / 3)


def test_judges_of_a_pair_are_drawn_evenly_and_always_alike() -> None:
    names = [f"j{i}" for i in range(6)]
    drawn = [asked_about(f"p{i}", names, 2, 0) for i in range(600)]
    assert drawn == [asked_about(f"p{i}", names, 2, 0) for i in range(600)]
    counts = [sum(name in of for of in drawn) for name in names]
    assert all(len(set(of)) == 2 for of in drawn) and min(counts) > 150 and max(counts) < 250
