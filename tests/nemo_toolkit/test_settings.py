"""The same YAML and overrides, read by NeMo's ``hydra_runner`` and by the package itself: the same settings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from paths import ROOT

from nemo_rpo.config.load import load_config
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError

RECIPES = sorted(path.stem for path in (ROOT / "conf").glob("*.yaml"))


def both(name: str | Path, *overrides: str, **options) -> list[RunConfig]:
    return [load_config(str(name), overrides, notify=lambda text: None, hydra=hydra, **options) for hydra in (1, 0)]


def refusal(name: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(str(name), overrides, notify=lambda text: None, hydra=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, tree: dict) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_of_ours_is_read_alike(name: str) -> None:
    argv = list(sys.argv)
    by_hydra, by_us = both(name, "model.rpo.eta_init=.8", config_path=ROOT / "conf")
    assert by_hydra == by_us != RunConfig()
    assert sys.argv == argv


@pytest.mark.parametrize(
    "override",
    [
        "model.optim.lr=1e-5",
        "+model.optim.lr=1e-5",
        "++model.optim.lr=1e-5",
        "model.rpo.prior=[2,1]",
        "model.data.data_prefix={train:[a.jsonl,b.jsonl],validation:[c.jsonl]}",
        "exp_manager.name='a name with = in it'",
        "pretrained_checkpoint.restore_from_path=null",
        "model.rpo.reference_cache=${exp_manager.name}/scored",
        "model.micro_batch_size='${int_div:${model.global_batch_size},2}'",
    ],
)
def test_overrides_mean_the_same(tmp_path: Path, override: str) -> None:
    by_hydra, by_us = both(write(tmp_path / "run.yaml", {"model": {"global_batch_size": 8}}), override)
    assert by_hydra == by_us != RunConfig()


def test_a_setting_is_taken_back(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", {"model": {"global_batch_size": 8, "rpo": {"eta_init": 0.7}}})
    by_hydra, by_us = both(path, "~model.rpo.eta_init")
    assert by_hydra == by_us and by_us.model.rpo.eta_init == RunConfig().model.rpo.eta_init


def test_config_groups_are_hydras(tmp_path: Path) -> None:
    """What the package's own reader has not got: a group beside the file, packages, a choice on the command line."""
    (tmp_path / "optim").mkdir()
    for name, rate in (("slow", 1e-7), ("fast", 1e-4)):
        (tmp_path / "optim" / f"{name}.yaml").write_text(f"# @package model.optim\nlr: {rate}\n", encoding="utf-8")
    path = tmp_path / "run.yaml"
    path.write_text("defaults: [{optim: slow}, _self_]\nmodel: {global_batch_size: 8}\n", encoding="utf-8")
    rates = [
        load_config(str(path), overrides, hydra=True).model.optim.lr
        for overrides in ([], ["optim=fast"], ["optim=slow"])
    ]
    assert rates == [1e-7, 1e-4, 1e-7]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", {"model": {"global_batch_size": 8}})
    assert "did you mean model.rpo.eta_init" in refusal(path, "model.rpo.eta_int=.8")
    assert f"{path} under Hydra: " in refusal(path, "model.rpo.prior=[2,1")
    assert "run.yaml" in refusal(path, "~model.rpo.sweep")
    write(path, {"defaults": ["absent"]})
    assert "absent" in refusal(path)
