"""examples/nemo_rl/run_rpo.py, run over the stand-ins: it wires, and says what is wrong with a file or a setting."""

from __future__ import annotations

import json
import runpy
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from paths import ROOT

from nemo_rpo.errors import RPOError

from .driver import DataLoader, Recipe, dpo_train, rows, tokenizer
from .upstream import VERSIONS, AllTaskProcessedDataset, CheckpointManager, Version, config, preference_preprocessor
from .workers import BigramModel, Workers

EXAMPLE = ROOT / "examples" / "nemo_rl" / "run_rpo.py"


def install_recipe(monkeypatch: pytest.MonkeyPatch, version: Version, folder: Path) -> list[Any]:
    """The functions that ``run_dpo.py`` of NeMo-RL imports; what ``dpo_train`` was given is appended to the list."""
    trained: list[Any] = []

    def read(path: str) -> list[dict]:
        lines = Path(path).read_text().splitlines()
        return [{**json.loads(line), "task_name": "pairs"} for line in lines]

    def data(_: Any, section: dict) -> tuple[Any, dict[str, Any]]:
        processors = {"pairs": (None, preference_preprocessor)}
        return tuple(
            made if name == "train" else {"default": made}
            for name in ("train", "validation")
            if (made := AllTaskProcessedDataset(read(section[name]["data_path"]), tokenizer, dict(processors), 64))
        )

    def setup(cfg: Any, _: Any, train: Any, validation: dict[str, Any]) -> tuple:
        loaders = DataLoader(train, 8, True), {name: DataLoader(x, 8, False) for name, x in validation.items()}
        checkpointer = CheckpointManager({"checkpoint_dir": str(folder / "checkpoints")})
        state = None if version.dictionary_save_state else SimpleNamespace(total_steps=0)
        return Workers(BigramModel(), 2), None, *loaders, None, None, checkpointer, state, cfg

    def train(policy: Any, loader: Any, validation: dict, _: Any, loss_fn: Any, cfg: Any, *rest: Any) -> None:
        recipe = Recipe(version, folder, [], max_steps=2)
        info = {"step": 0, "total_steps": 0}
        trained.append(policy)
        trained.append(dpo_train(recipe, policy, loader, validation["default"], loss_fn, rest[1], info))

    modules = {
        "nemo_rl.algorithms.dpo": {"MasterConfig": partial(master_config, version), "dpo_train": train, "setup": setup},
        "nemo_rl.algorithms.utils": {"get_tokenizer": lambda section: tokenizer},
        "nemo_rl.data.utils": {"setup_preference_data": data},
        "nemo_rl.distributed": {},
        "nemo_rl.distributed.virtual_cluster": {"init_ray": lambda: None},
        "nemo_rl.utils.config": {"load_config": OmegaConf.load, "parse_hydra_overrides": with_overrides},
        "nemo_rl.utils.logger": {"get_next_experiment_dir": lambda folder: f"{folder}/exp_001"},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__dict__.update(members, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    return trained


def master_config(version: Version, **tree: Any) -> Any:
    return config(version, tree)


def with_overrides(cfg: Any, overrides: list[str]) -> Any:
    return OmegaConf.merge(cfg, OmegaConf.from_dotlist(overrides))


def recipe_file(folder: Path, data: list[dict]) -> Path:
    """The example's recipe over a parent of a few lines, on a user's file."""
    for name in ("train", "validation"):
        lines = ({key: value for key, value in row.items() if key != "task_name"} for row in data)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    recipe = OmegaConf.load(EXAMPLE.with_name("rpo.yaml"))
    assert recipe.pop("defaults") == "dpo.yaml"
    recipe.policy = {"tokenizer": {}, "megatron_cfg": {"enabled": False}}
    for name in ("train", "validation"):
        recipe.data[name].data_path = str(folder / recipe.data[name].data_path)
    OmegaConf.save(recipe, folder / "rpo.yaml")
    return folder / "rpo.yaml"


def run_example(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_the_example_trains_on_a_users_file_with_one_more_field(version, monkeypatch, tmp_path):
    trained = install_recipe(monkeypatch, version, tmp_path)
    run_example(
        monkeypatch, "--config", recipe_file(tmp_path, rows(16)), "dpo.robust.estimator=ema", "dpo.robust.alpha=0.5"
    )
    policy, result = trained
    assert policy.em.label_counts.tolist() == [6, 5, 5]
    assert policy.em.settings.alpha == 0.5
    assert len(result["logged"]) == 2
    assert (tmp_path / "checkpoints" / "step_2" / "policy" / "rpo_state.json").exists()


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({"annotator": None}, [], "run_rpo.py: data:1: field 'annotator' is null"),
        ({}, ["dpo.robust.annotator_key=rater"], "run_rpo.py: data:1: field 'rater' is missing"),
        ({}, ["dpo.robust.eta=0.9"], "run_rpo.py: unknown key dpo.robust.eta"),
    ],
)
def test_the_example_says_what_is_wrong_in_one_line(version, change, overrides, message, monkeypatch, tmp_path):
    install_recipe(monkeypatch, version, tmp_path)
    path = recipe_file(tmp_path, [{**row, **change} for row in rows(16)])
    with pytest.raises(SystemExit) as stopped:
        run_example(monkeypatch, "--config", path, *overrides)
    assert stopped.value.code.startswith(message)
    assert "\n" not in stopped.value.code
    assert isinstance(stopped.value.__context__, RPOError)
