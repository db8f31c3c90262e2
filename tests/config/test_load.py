"""From files and overrides to the dataclasses: what is accepted, and the exact words where something is not."""

from __future__ import annotations

import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from nemo_rpo.config.load import config_to_yaml, load_config
from nemo_rpo.config.merging.sources import parse_override
from nemo_rpo.config.merging.suggest import nearest_key
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError, MissingExtraError

from .aligner import flat, write_yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def empty(tmp_path: Path) -> str:
    path = tmp_path / "empty.yaml"
    path.write_text("", encoding="utf-8")
    return str(path)


def fails(name: str, *overrides: str, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(name, overrides, notify=lambda text: None, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_empty_file_is_the_defaults(empty: str) -> None:
    assert load_config(empty) == RunConfig()


def test_every_setting_round_trips_through_yaml(tmp_path: Path, empty: str) -> None:
    overrides = ["model.rpo.loss_options={gamma: 0.5}", "trainer.precision=32", "model.rpo.prior=[2, 1]"]
    overrides += ["model.seed=1e3", "model.rpo.label_model={features: [slot, topic], gold: false, sample_votes: 1e3}"]
    cfg = load_config(empty, overrides)
    path = tmp_path / "again.yaml"
    path.write_text(config_to_yaml(cfg), encoding="utf-8")
    assert load_config(str(path)) == cfg != RunConfig()
    assert (cfg.trainer.precision, cfg.model.rpo.prior, cfg.model.seed) == ("32", (2.0, 1.0), 1000)
    known = cfg.model.rpo.label_model
    assert (known.features, known.gold, known.families, known.sample_votes) == (["slot", "topic"], False, True, 1000)


@pytest.mark.parametrize("name", ["gpt_rpo", "demo", "ukpconvarg1", "genrm"])
def test_shipped_files_load_and_repeat_no_default(name: str) -> None:
    said: list[str] = []
    cfg = load_config(name, config_path=ROOT / "conf", notify=said.append)
    assert not said
    path = ROOT / "conf" / f"{name}.yaml"
    given = flat(yaml.safe_load(path.read_text("utf-8")))
    assert given and not [key for key in given if attrgetter(key)(cfg) == attrgetter(key)(RunConfig())]


def test_defaults_list_merges_in_order(tmp_path: Path) -> None:
    write_yaml(tmp_path / "base.yaml", {"model.seed": 1, "model.optim.lr": 1e-3, "model.micro_batch_size": 4})
    write_yaml(tmp_path / "middle.yaml", {"model.seed": 2, "model.optim.lr": 2e-3}, defaults=["base"])
    cfg = load_config(str(write_yaml(tmp_path / "top.yaml", {"model.seed": 3}, defaults=["middle"])))
    assert (cfg.model.seed, cfg.model.optim.lr, cfg.model.micro_batch_size) == (3, 2e-3, 4)
    self_first = write_yaml(tmp_path / "first.yaml", {"model.seed": 3}, defaults=["_self_", "middle"])
    assert load_config(str(self_first)).model.seed == 2


def test_defaults_list_that_cannot_be_followed(tmp_path: Path) -> None:
    circle = write_yaml(tmp_path / "circle.yaml", {}, defaults=["circle"])
    assert fails(str(circle)) == f"{circle}: its defaults: lead back to itself"
    group = write_yaml(tmp_path / "group.yaml", {}, defaults=[{"db": "mysql"}])
    assert fails(str(group)) == f"{group}: defaults: takes names of YAML files beside it; got db: mysql"
    assert fails(str(write_yaml(tmp_path / "gone.yaml", {}, defaults=["bas"]))) == (
        f"no bas.yaml in {tmp_path}; there are: circle, gone, group"
    )


def test_interpolation(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_RPO_TEST_RATE", "2e-5")
    cfg = load_config(
        empty,
        [
            "model.tensor_model_parallel_size=4",
            "model.global_batch_size=${multiply:${model.tensor_model_parallel_size}, 8}",
            "model.micro_batch_size=${int_div:${.global_batch_size}, 16}",
            "model.optim.lr=${oc.env:NEMO_RPO_TEST_RATE}",
        ],
    )
    assert (cfg.model.global_batch_size, cfg.model.micro_batch_size, cfg.model.optim.lr) == (32, 2, 2e-5)


def test_hydra_signs(tmp_path: Path) -> None:
    settings = {"model.optim.lr": 1e-3, "model.optim.betas": [0.8, 0.9], "model.seed": 5}
    path = str(write_yaml(tmp_path / "x.yaml", settings))
    cfg = load_config(path, ["+model.seed=6", "++trainer.devices=2", "~model.optim", "model.optim.betas[1]=0.95"])
    assert (cfg.model.seed, cfg.trainer.devices) == (6, 2)
    assert (cfg.model.optim.lr, cfg.model.optim.betas) == (RunConfig().model.optim.lr, (0.9, 0.95))
    cfg = load_config(path, ["model.data.data_prefix={train: a, validation: b}", "~model.data.data_prefix.validation"])
    assert cfg.model.data.data_prefix == {"train": "a"}
    cfg = load_config(path, ["~trainer.logger", "model.data.data_prefix.train=[a, b]", "exp_manager.name="])
    assert cfg.model.data.data_prefix == {"train": ["a", "b"]} and cfg.exp_manager.name == ""


def test_sequence_parallel_without_tensor_parallel_is_off(empty: str) -> None:
    said: list[str] = []
    assert not load_config(empty, ["model.sequence_parallel=true"], notify=said.append).model.sequence_parallel
    assert said == ["model.sequence_parallel is off: it needs model.tensor_model_parallel_size above 1"]
    both = ["model.sequence_parallel=true", "model.tensor_model_parallel_size=2"]
    assert load_config(empty, both, notify=said.append).model.sequence_parallel and len(said) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.optm.lr=3", "unknown key model.optm.lr, did you mean model.optim.lr?"),
        ("++model.rpo.alhpa=0.2", "unknown key model.rpo.alhpa, did you mean model.rpo.alpha?"),
        ("trainer.max_epoch=2", "unknown key trainer.max_epoch, did you mean trainer.dpo.max_epochs?"),
        ("+model.beta=.1", "unknown key model.beta, did you mean model.dpo.ref_policy_kl_penalty?"),
        ("xyzzy=1", "unknown key xyzzy"),
        ("~model.optim.lrr", "unknown key model.optim.lrr, did you mean model.optim.lr?"),
        (
            "model.optim={lr: 1e-3, wd: 0.1, betaz: [0, 0]}",
            "unknown key model.optim.wd, did you mean model.optim.weight_decay?; "
            "unknown key model.optim.betaz, did you mean model.optim.betas?",
        ),
        ("model.optim=3", "model.optim is a section of settings; got 3"),
        ("model.optim.lr=fast", "model.optim.lr must be a number, above 0; got 'fast'"),
        ("model.optim.lr=0", "model.optim.lr must be a number, above 0; got 0"),
        ("model.optim.lr=.nan", "model.optim.lr must be a number, above 0; got nan"),
        ("model.optim.lr=null", "model.optim.lr must be a number, above 0; got None"),
        ("model.optim.lr={a: 1}", "model.optim.lr must be a number, above 0; got {'a': 1}"),
        ("model.micro_batch_size=2.5", "model.micro_batch_size must be a whole number, at least 1; got 2.5"),
        ("trainer.devices=0", "trainer.devices must be a whole number, at least 1 or null; got 0"),
        ("model.sequence_parallel=maybe", "model.sequence_parallel must be true or false; got 'maybe'"),
        ("model.seed=true", "model.seed must be a whole number, at least 0; got True"),
        ("trainer.precision=16-mixed", "trainer.precision must be one of bf16, 32; got '16-mixed'"),
        ("trainer.accelerator=tpu", "trainer.accelerator must be one of gpu, cpu; got 'tpu'"),
        ("model.rpo.objective=both", "model.rpo.objective must be one of auto, induced, weighted, bounded; got 'both'"),
        (
            "model.rpo.reference=disk",
            "model.rpo.reference must be one of resident, swapped, cached, adapters; got 'disk'",
        ),
        ("model.rpo.prior=[1]", "model.rpo.prior must be a list of 2, each a number; got [1]"),
        (
            "model.optim.betas=[0.9, 1]",
            "model.optim.betas must be a list of 2, each a number, at least 0 and below 1; got [0.9, 1]",
        ),
        ("model.data.data_prefix=[0.5, file]", "model.data.data_prefix must be a mapping; got [0.5, 'file']"),
        ("model.seed=${nope}", "model.seed: Interpolation key 'nope' not found"),
        ("model.seed=???", "model.seed: Missing mandatory value: model.seed"),
        ("model.optim.betas[7]=1", "model.optim.betas.7: list index out of range"),
    ],
)
def test_one_line_for_what_is_wrong(empty: str, override: str, message: str) -> None:
    assert fails(empty, override) == f"{message} (override {override})"


@pytest.mark.parametrize("override", ["model.seed", "=3", "~model.seed=3", "model seed=3"])
def test_what_is_no_override(empty: str, override: str) -> None:
    assert fails(empty, override) == f"override {override!r} is not key=value"


def test_a_value_that_is_no_yaml(empty: str) -> None:
    advice = "quote the value, and put a space after each ':'"
    assert fails(empty, "model.data.data_prefix={train:a}") == (
        f"override 'model.data.data_prefix={{train:a}}': a ':' without a space; {advice}"
    )
    message = fails(empty, "model.optim.betas=[0.9, ")  # the parser's own words differ between versions
    assert message.startswith("override 'model.optim.betas=[0.9, ': line ") and message.endswith(f"; {advice}")
    assert load_config(empty, ["model.data.data_prefix={train:[a]}"]).model.data.data_prefix == {"train": ["a"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  sed: 3\n", "unknown key model.sed, did you mean model.seed? (in {path})"),
        ("model:\n  seed: x\n", "model.seed must be a whole number, at least 0; got 'x' (in {path})"),
        ("model:\n  seed: 1\n  seed: 2\n", "{path}: line 3: found duplicate key seed"),
        ("- model\n", "{path}: must hold sections such as model: and trainer:; got ['model']"),
        ("defaults: base\n", "{path}: defaults: must be a list of YAML files beside it; got 'base'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    assert fails(str(path)) == message.format(path=path)


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there_are = ", ".join(sorted(path.stem for path in (ROOT / "conf").glob("*.yaml")))
    assert fails("gpt_rop") == f"no gpt_rop.yaml in conf, ., {ROOT / 'conf'}; there are: {there_are}"
    assert fails("x.yaml", config_path=tmp_path) == f"no x.yaml in {tmp_path}; give its folder with --config-path"


def test_sections_left_empty_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("model:\n  optim:\n  peft:\n  data: {}\ntrainer:\n", encoding="utf-8")
    assert load_config(str(path)) == RunConfig()


def test_nearest_key_prefers_the_same_name_elsewhere() -> None:
    assert nearest_key("model.val_check_interval") == "trainer.dpo.val_check_interval"
    assert nearest_key("model.optim.max_steps") == "model.optim.sched.max_steps"
    assert nearest_key("trainer.max_steps_") == "trainer.dpo.max_steps"
    assert nearest_key("learning_rate") == "model.optim.lr"
    assert nearest_key("qqq") is None


def test_the_extra_is_named_where_omegaconf_is_missing(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("nemo_rpo.config.merging.sources", "nemo_rpo.config.merging.tree"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    with pytest.raises(MissingExtraError) as caught:
        load_config(empty)
    assert str(caught.value) == "omegaconf is not installed; run: pip install 'nemo-rpo[mcore]'"


def test_a_default_is_not_shared_between_loads(empty: str) -> None:
    load_config(empty).model.data.data_prefix["train"] = "x"
    assert load_config(empty).model.data.data_prefix == {}
    assert replace(RunConfig()).model.data.data_prefix == {}


@pytest.mark.parametrize(
    "text",
    [
        "model:\n  ~: 3\n",
        "model:\n  null: 3\n",
        "model:\n  encoder_seq_length: ${\n",
        "model:\n  name: ${nothing\n",
        "true: 3\n",
        "model: " + "[" * 3000 + "]" * 3000,
        "? [a, b]\n: 3\n",
        "model:\n  1.5: 3\n",
    ],
)
def test_yaml_that_is_no_settings_is_one_line(text, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config("bad", config_path=tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("override", ["model.encoder_seq_length=${", "model.name=" + "[" * 3000, "model.name=${oc.x"])
def test_an_override_that_cannot_be_read_is_one_line(override):
    with pytest.raises(ConfigError, match="override"):
        parse_override(override)


def test_a_name_that_no_file_can_have_is_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no x+"):
        load_config("x" * 5000, config_path=tmp_path)
