"""What is known to be wrong before a rank works, in exact words."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from operator import attrgetter
from pathlib import Path

import pytest

from nemo_rpo.config import architecture
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.fingerprint import config_fingerprint, fingerprint_differences
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.splits import is_validation, metrics_split, split_files
from nemo_rpo.config.types import leaves
from nemo_rpo.config.validate import time_limit, validate_config, validate_parallel
from nemo_rpo.errors import ConfigError


def config(**settings) -> RunConfig:
    """A valid configuration with dotted settings (``__`` for dots) put in."""
    cfg = RunConfig()
    cfg.model.data.data_prefix = {"train": "train.jsonl"}
    for path, value in settings.items():
        *sections, name = path.split("__")
        setattr(attrgetter(".".join(sections))(cfg), name, value)
    return cfg


def test_the_defaults_with_data_are_valid() -> None:
    validate_config(config())
    validate_parallel(config(), 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model__rpo__base_loss": "pal", "model__rpo__enabled": False},
            "the loss 'pal' learns which of its 2 groups an annotator belongs to by the EM: set model.rpo.enabled=true",
        ),
        (
            {"model__rpo__base_loss": "p2l_bt"},
            "the loss 'p2l_bt' needs model.data.players, the names of the two or more models",
        ),
        (
            {"model__data__players": ["x", "y"]},
            "model.data.players lists the models of battles, and the loss 'dpo' does not rank models",
        ),
        (
            {"model__rpo__base_loss": "p2l_bt", "model__data__players": ["x", "x"]},
            "model.data.players holds 'x' twice: give each model one name",
        ),
        (
            {"model__rpo__base_loss": "pal", "model__rpo__sweep": "end"},
            "model.rpo.sweep=end fits one truth a pair, and the loss 'pal' has 2, one a group: set it to none",
        ),
        (
            {"model__rpo__base_loss": "pal", "model__rpo__loss_options": {"groups": 0}},
            "option 'groups' of the loss 'pal' must be a whole number, 1 or more; got 0",
        ),
        ({"model__micro_batch_size": 0}, "model.micro_batch_size must be a whole number, at least 1; got 0"),
        ({"trainer__precision": "fp8"}, "trainer.precision must be one of bf16, 32; got 'fp8'"),
        (
            {"model__torch_profile__enabled": True, "model__torch_profile__end_step": 9},
            "model.torch_profile.end_step=9 is before model.torch_profile.start_step=10",
        ),
        (
            {"model__nsys_profile__enabled": True, "trainer__accelerator": "cpu"},
            "model.nsys_profile.enabled needs trainer.accelerator=gpu: set model.torch_profile.enabled",
        ),
        (
            {"model__nsys_profile__enabled": True, "model__torch_profile__enabled": True},
            "model.nsys_profile.enabled and model.torch_profile.enabled use one interface: set one alone",
        ),
        (
            {"model__rpo__eta_init": 1.5},
            "model.rpo.eta_init must be between 0.0001 and 0.9999 (eta_clamp, eta_floor); got 1.5",
        ),
        ({"model__sequence_parallel": True}, "model.sequence_parallel needs model.tensor_model_parallel_size above 1"),
        (
            {"model__rpo__previous_iterate": "earlier"},
            "model.rpo.previous_iterate is set, but the loss 'dpo' compares with no earlier policy: unset it",
        ),
        (
            {"model__rpo__stop_kl": 3.0, "model__rpo__base_loss": "bt"},
            "model.rpo.stop_kl=3.0 is of what a policy predicts, and the loss 'bt' trains a reward model: unset it",
        ),
        (
            {"model__rpo__kl_to_start": True},
            "model.rpo.kl_to_start=True is measured in validations: set model.data.data_prefix.validation and "
            "trainer.dpo.val_check_interval above 0",
        ),
        (
            {"model__rpo__reference_from": "earlier", "model__rpo__base_loss": "simpo"},
            "model.rpo.reference_from is set, but the loss 'simpo' has no reference: unset it",
        ),
        (
            {
                "model__rpo__reference_from": "a",
                "model__rpo__previous_iterate": "b",
                "model__rpo__base_loss": "onpo",
                "model__rpo__link_tau": 2.0,
            },
            "the loss 'onpo' compares with one policy alone, and both model.rpo.previous_iterate and "
            "model.rpo.reference_from are set: unset one of them",
        ),
        (
            {"model__rpo__reference_from": "earlier"},
            "model.rpo.reference_from needs pretrained_checkpoint.restore_from_path: fresh weights have nothing to be "
            "compared with",
        ),
        (
            {"model__rpo__reference": "cached", "model__rpo__base_loss": "tdpo2"},
            "model.rpo.reference=cached keeps one log-prob a response, and the loss 'tdpo2' compares with the "
            "reference token by token (kl): set it to swapped or resident",
        ),
        (
            {"model__rpo__previous_iterate": "earlier", "model__rpo__base_loss": "dno_prct"},
            "model.rpo.previous_iterate needs pretrained_checkpoint.restore_from_path: fresh weights have no earlier "
            "round",
        ),
        (
            {"model__sequence_parallel": True, "model__tensor_model_parallel_size": 4, "model__encoder_seq_length": 30},
            "model.encoder_seq_length=30 must be a multiple of 4 (sequence and context parallel ranks, FP8)",
        ),
        (
            {"model__rpo__logprob_precision": "fp8_blockwise", "model__encoder_seq_length": 1000},
            "model.encoder_seq_length=1000 must be a multiple of 128 (sequence and context parallel ranks, FP8)",
        ),
        (
            {"model__rpo__logprob_precision": "fp8_delayed"},
            "model.rpo.logprob_precision=fp8_delayed: delayed scales are updated in training steps and never under "
            "no_grad, so a frozen reference would keep scales of 1: set fp8_tensorwise, fp8_blockwise or fp8_mxfp8",
        ),
        (
            {"model__rpo__reference_logprob_precision": "fp8_tensorwise", "trainer__accelerator": "cpu"},
            "model.rpo.reference_logprob_precision=fp8_tensorwise needs trainer.accelerator=gpu: FP8 products are "
            "Transformer Engine's; set it to bf16",
        ),
        (
            {"model__rpo__logprob_precision": "fp8_tensorwise", "trainer__precision": "32"},
            "model.rpo.logprob_precision=fp8_tensorwise needs trainer.precision=bf16",
        ),
        (
            {
                "model__rpo__logprob_precision": "fp8_tensorwise",
                "model__rpo__reference_logprob_precision": "fp8_blockwise",
            },
            "model.rpo.logprob_precision=fp8_tensorwise and model.rpo.reference_logprob_precision=fp8_blockwise differ",
        ),
        (
            {"model__rpo__logprob_head": "liger", "trainer__accelerator": "cpu"},
            "model.rpo.logprob_head=liger needs trainer.accelerator=gpu: set it to chunked",
        ),
        (
            {"model__virtual_pipeline_model_parallel_size": 2},
            "model.virtual_pipeline_model_parallel_size=2 needs model.pipeline_model_parallel_size above 1",
        ),
        (
            {"model__activations_checkpoint_granularity": "full"},
            "model.activations_checkpoint_granularity=full needs model.activations_checkpoint_method",
        ),
        (
            {"model__activations_checkpoint_num_layers": 1},
            "model.activations_checkpoint_num_layers=1 needs model.activations_checkpoint_granularity=full",
        ),
        (
            {"model__data__packed_sequence_size": 4096},
            "model.data.packed_sequence_size=4096 needs model.data.packed_sequence=true",
        ),
        (
            {"model__data__share_prompts": "always"},
            "model.data.share_prompts=always needs model.data.packed_sequence=true",
        ),
        (
            {"model__data__packed_sequence": True, "model__data__packed_sequence_size": 2047},
            "model.data.packed_sequence_size=2047 has no room for both responses of a pair: set at least 2048",
        ),
        (
            {"model__optim__overlap_param_sync": True},
            "model.optim.overlap_param_sync needs model.optim.overlap_grad_sync",
        ),
        (
            {"model__optim__overlap_param_sync": True, "model__optim__overlap_grad_sync": True},
            "model.optim.overlap_param_sync gathers weights while the reference's are swapped in: "
            "set model.rpo.reference to resident or cached",
        ),
        (
            {
                "model__optim__overlap_param_sync": True,
                "model__optim__overlap_grad_sync": True,
                "model__rpo__reference": "cached",
                "model__rpo__previous_iterate": "earlier",
                "model__rpo__base_loss": "dno_prct",
                "pretrained_checkpoint__restore_from_path": "start",
            },
            "model.optim.overlap_param_sync gathers weights while the previous iterate's are swapped in: "
            "set model.rpo.reference=resident",
        ),
        (
            {"model__optim__sched__min_lr": 1e-3},
            "model.optim.sched.min_lr=0.001 is above model.optim.lr=9e-06",
        ),
        (
            {"trainer__dpo__max_steps": 0},
            "trainer.dpo.max_steps=0 trains nothing: set a number of steps, or -1 for max_epochs",
        ),
        (
            {"exp_manager__max_time_per_run": "4h"},
            "exp_manager.max_time_per_run must be DD:HH:MM:SS, such as 00:03:55:00; got '4h'",
        ),
        (
            {"model__data__data_prefix": {}},
            "model.data.data_prefix.train is not set: give the file of training pairs",
        ),
        (
            {"model__data__data_prefix": {"train": [0.5, "a"]}},
            "model.data.data_prefix.train must be a file or a list of files; got [0.5, 'a']",
        ),
        (
            {"model__data__data_prefix": {"train": "a", "val": "b"}},
            "unknown key model.data.data_prefix.val: there are train and validation",
        ),
        ({"model__rpo__base_loss": "dpoo"}, "unknown loss 'dpoo'; did you mean 'dpo'?"),
        ({"model__rpo__loss_options": {"gamma": 1}}, "the loss 'dpo' has no option 'gamma'"),
        ({"model__rpo__base_loss": "cdpo"}, "the loss 'cdpo' already models label noise"),
        ({"model__rpo__base_loss": "sppo"}, "the margins of the loss 'sppo'"),
    ],
)
def test_one_line_names_the_setting(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config(config(**settings))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"a/b": "f"}, ": a set's name is made of letters, digits, '_' and '-'; got 'a/b'"),
        ({"a": []}, ".a must be a file or a list of files; got []"),
        ({"a": {"b": "f"}}, ".a must be a file or a list of files; got {'b': 'f'}"),
        (3, " must be a file or a list of files, or a mapping of names to them; got 3"),
    ],
)
def test_named_validation_sets_that_cannot_be(validation: object, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        validate_config(config(model__data__data_prefix={"train": "t", "validation": validation}))
    assert str(raised.value) == f"model.data.data_prefix.validation{message}"


def test_named_validation_sets_keep_their_order_and_names() -> None:
    cfg = config(model__data__data_prefix={"train": ["t"], "validation": {"chat": "a", "code": ["b", "c"]}})
    validate_config(cfg)
    files = split_files(cfg.model.data)
    assert files == {"train": ["t"], "validation/chat": ["a"], "validation/code": ["b", "c"]}
    assert [metrics_split(name) for name in files if is_validation(name)] == ["val/chat", "val/code"]
    assert metrics_split("validation") == "val" and not is_validation("train")


def test_the_architectures_defaults_are_those_of_the_settings() -> None:
    """Twelve settings of the model that a checkpoint may leave out: one place for what they are then."""
    shared = {spec.name: spec.default for spec in fields(GPTArchitecture) if spec.default is not MISSING}
    assert shared.pop("experts") is None  # whose settings stand in a class of their own, which both inherit from
    assert len(shared) == 11 and shared == {name: getattr(RunConfig().model, name) for name in shared}
    source = Path(architecture.__file__).read_text()
    assert all(f"{name}=model.{name}" not in source for name in shared)
    assert all(re.search(rf"^    {name}: \w+ = ModelConfig\.{name}$", source, re.MULTILINE) for name in shared)


def test_noise_models_and_saturating_links_can_be_had_on_purpose() -> None:
    validate_config(config(model__rpo__base_loss="cdpo", model__rpo__enabled=False))
    validate_config(config(model__rpo__base_loss="cdpo", model__rpo__allow_noise_model=True))
    validate_config(config(model__rpo__base_loss="sppo", model__rpo__link_tau=100.0))


@pytest.mark.parametrize(
    ("settings", "ranks", "message"),
    [
        (
            {"trainer__devices": 8, "trainer__num_nodes": 2},
            4,
            "trainer.num_nodes=2 × trainer.devices=8 asks for 16 ranks, but there are 4",
        ),
        (
            {"model__tensor_model_parallel_size": 2, "model__pipeline_model_parallel_size": 2},
            6,
            "6 ranks are no multiple of model.tensor_model_parallel_size=2 × model.pipeline_model_parallel_size=2: "
            "start a multiple of 4",
        ),
        (
            {"model__global_batch_size": 20, "model__micro_batch_size": 4, "model__tensor_model_parallel_size": 2},
            8,
            "model.global_batch_size=20 is no multiple of model.micro_batch_size=4 × 4 data-parallel ranks: "
            "choose a multiple of 16",
        ),
        (
            {
                "model__global_batch_size": 3,
                "model__pipeline_model_parallel_size": 2,
                "model__virtual_pipeline_model_parallel_size": 2,
            },
            2,
            "model.global_batch_size=3 is 3 micro-batches on every rank; the interleaved schedule needs a multiple of "
            "model.pipeline_model_parallel_size=2",
        ),
        (
            {"model__global_batch_size": 6, "model__data__packed_sequence": True},
            4,
            "model.global_batch_size=6 is no multiple of 4 data-parallel ranks",
        ),
        (
            {
                "model__global_batch_size": 1,
                "model__pipeline_model_parallel_size": 2,
                "model__virtual_pipeline_model_parallel_size": 2,
                "model__data__packed_sequence": True,
            },
            2,
            "model.global_batch_size=1 is 1 pair on every rank; the interleaved schedule needs a micro-batch for each "
            "of model.pipeline_model_parallel_size=2 stages",
        ),
    ],
)
def test_layouts_that_do_not_fit_the_ranks(settings: dict, ranks: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_parallel(config(**settings), ranks)
    assert str(caught.value) == message


def test_time_limit_in_seconds() -> None:
    assert time_limit(config()) is None
    assert time_limit(config(exp_manager__max_time_per_run="01:02:03:04")) == 93784


def test_fingerprint_holds_what_is_learnt_and_not_where_it_runs() -> None:
    moved = config(
        model__tensor_model_parallel_size=4,
        model__micro_batch_size=8,
        model__optim__name="adam",
        model__rpo__reference="cached",
        trainer__devices=4,
        trainer__dpo__max_epochs=9,
        exp_manager__explicit_log_dir="/elsewhere",
        model__data__data_prefix={"train": "/elsewhere/train.jsonl"},
    )
    assert config_fingerprint(moved) == config_fingerprint(config())
    changed = config_fingerprint(config(model__optim__lr=1e-5, model__rpo__prior=(1.0, 1.0)))
    assert fingerprint_differences(config_fingerprint(config()), changed) == [
        "model.rpo.prior was [3.0, 1.0] and is [1.0, 1.0]",
        "model.optim.lr was 9e-06 and is 1e-05",
    ]


def test_fingerprint_ignores_settings_of_another_version() -> None:
    saved = config_fingerprint(config())
    assert set(saved) < {key for key, _ in leaves(RunConfig)}
    assert not fingerprint_differences({**saved, "model.gone": 1}, {**saved, "model.new": 2})
