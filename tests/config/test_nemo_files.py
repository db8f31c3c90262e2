"""A NeMo-Aligner user's file loads, means what it meant, and says what it no longer means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemo_rpo.config.load import load_config
from nemo_rpo.config.merging.nemo_keys import IGNORED, MIRRORS, ONLY_WITH, VALUES
from nemo_rpo.config.merging.tree import HINTS
from nemo_rpo.config.validate import time_limit, validate_config
from nemo_rpo.errors import ConfigError

from .aligner import SETTINGS, write_yaml

GROUP = {"optional tp_overlap@model.ub_tp_comm_overlap_cfg": None}


@pytest.fixture
def aligner_yaml(tmp_path: Path) -> Path:
    return write_yaml(tmp_path / "gpt_dpo.yaml", SETTINGS, defaults=[GROUP])


def load(path: Path, *overrides: str):
    notices: list[str] = []
    return load_config(str(path), overrides, notify=notices.append), notices


def test_settings_keep_their_meaning(aligner_yaml: Path) -> None:
    cfg, _ = load(aligner_yaml)
    validate_config(cfg)
    assert (cfg.trainer.num_nodes, cfg.trainer.devices, cfg.trainer.precision) == (2, 4, "bf16")
    assert (cfg.trainer.dpo.max_epochs, cfg.trainer.dpo.limit_val_batches) == (2, 8)
    assert isinstance(cfg.trainer.dpo.limit_val_batches, int) and isinstance(cfg.trainer.dpo.limit_train_batches, float)
    assert time_limit(cfg) == 3 * 3600 + 55 * 60  # through ${trainer.max_time}, a key that is ignored itself
    assert cfg.exp_manager.exp_dir == "results"  # null: the default
    assert cfg.exp_manager.wandb_logger_kwargs == {"project": "p", "name": "n"}
    model = cfg.model
    assert model.micro_batch_size == 2
    assert (model.dpo.preference_loss, model.dpo.sft_average_log_probs) == ("ipo", True)
    assert model.optim.betas == (0.9, 0.95) and model.optim.sched.min_lr == 3e-7
    assert model.data.seq_length == model.encoder_seq_length == 1024  # interpolates a setting the file leaves out
    assert model.data.pad_length_to_multiple_of == 1
    assert model.data.data_prefix == {"train": ["t.jsonl"], "validation": ["v.jsonl"]}


def test_one_notice_names_what_means_nothing(aligner_yaml: Path) -> None:
    _, notices = load(aligner_yaml)
    (notice,) = notices
    assert notice.startswith("settings of NeMo that mean nothing here: trainer.logger, trainer.enable_checkpointing, ")
    assert "optional tp_overlap@model.ub_tp_comm_overlap_cfg" in notice
    assert "model.peft.restore_from_ckpt.checkpoint_dir" in notice
    named = notice.partition(": ")[2].split(", ")
    for path in SETTINGS:
        ours = path in HINTS or path in MIRRORS
        covered = path in named or any(name.endswith(".*") and path.startswith(name[:-1]) for name in named)
        assert ours != covered, path
    assert "model.data.data_prefix.test" in named


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "++model.peft.lora_tuning.layer_selection=[1]",
            "model.peft.lora_tuning.layer_selection=[1] is not supported, and ignoring it would change the training: "
            "every layer has its adapters (override ++model.peft.lora_tuning.layer_selection=[1])",
        ),
        (
            "model.data.reset_position_ids=True",
            "model.data.reset_position_ids=True is not supported, and ignoring it would change the training: every "
            "response is a sequence of its own (override model.data.reset_position_ids=True)",
        ),
        (
            "++model.data.data_impl=packed_jsonl",
            "model.data.data_impl=packed_jsonl is not supported, and ignoring it would change the training: give the "
            "JSONL files themselves (override ++model.data.data_impl=packed_jsonl)",
        ),
        (
            "trainer.max_steps=300",
            "trainer.max_steps=300 but trainer.dpo.max_steps=-1: set trainer.dpo.max_steps alone "
            "(override trainer.max_steps=300)",
        ),
    ],
)
def test_what_would_change_the_training_is_refused(aligner_yaml: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(aligner_yaml, override)
    assert str(caught.value) == message


@pytest.mark.parametrize("path", sorted(ONLY_WITH))
def test_harmless_values_of_the_refusable_keys_pass(aligner_yaml: Path, path: str) -> None:
    harmless, _ = ONLY_WITH[path]
    for value in harmless:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        _, notices = load(aligner_yaml, f"++{path}={text}")
        assert path in notices[0]
    with pytest.raises(ConfigError, match="would change the training"):
        load(aligner_yaml, f"++{path}=something_else")


@pytest.mark.parametrize(("path", "spelling"), [(path, s) for path, table in VALUES.items() for s in table])
def test_spellings_of_nemo(aligner_yaml: Path, path: str, spelling: str) -> None:
    cfg, _ = load(aligner_yaml, f"{path}={spelling}", "precision=null")
    value = cfg
    for part in path.split("."):
        value = getattr(value, part)
    assert value == VALUES[path][spelling]


def test_the_tables_do_not_shadow_a_setting_of_ours() -> None:
    foreign = {*IGNORED, *ONLY_WITH, *MIRRORS}
    assert not foreign & set(HINTS)
    assert not {path for path in HINTS for name in IGNORED if name.endswith(".*") and path.startswith(name[:-1])}
    assert set(MIRRORS.values()) | set(VALUES) <= set(HINTS)


def test_the_file_that_nemo_aligner_ships() -> None:
    path = os.environ.get("NEMO_ALIGNER_CONF")
    if not path:
        pytest.skip("set NEMO_ALIGNER_CONF to NeMo-Aligner's examples/nlp/gpt/conf/gpt_dpo.yaml")
    cfg, notices = load(Path(path), "model.data.data_prefix={train: [t.jsonl], validation: [v.jsonl], test: [v.jsonl]}")
    validate_config(cfg)
    assert (cfg.model.optim.lr, cfg.model.dpo.ref_policy_kl_penalty, cfg.trainer.num_nodes) == (9e-6, 0.2, 8)
    assert len(notices) == 1 and "model.megatron_amp_O2" in notices[0]


def test_the_reference_runs_in_the_policys_micro_batches(aligner_yaml: Path) -> None:
    """A larger forward micro-batch would break the step-0 law, so NeMo-Aligner's key may only agree."""
    with pytest.raises(ConfigError, match=r"set model\.micro_batch_size alone"):
        load(aligner_yaml, "model.dpo.log_prob_forward_micro_batch_size=8")
