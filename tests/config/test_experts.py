"""Settings of mixtures of experts: what they describe, and which of them do not go together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nemo_rpo.config.architecture import GPTArchitecture, architecture_from_yaml
from nemo_rpo.config.experts.expert_shape import Experts, check_expert_layout, check_fresh_experts, layer_pattern
from nemo_rpo.config.load import load_config
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.validate import validate_config, validate_parallel
from nemo_rpo.errors import ConfigError

EXPERTS = Experts(num_moe_experts=8, moe_ffn_hidden_size=24, moe_router_topk=2)
MODEL = GPTArchitecture(4, 32, 48, 4, 2, 8, 50, 512, experts=EXPERTS)
DENSE = replace(MODEL, experts=None)
GIVEN = ["model.data.data_prefix.train=train.jsonl", "pretrained_checkpoint.restore_from_path=MODEL"]
SHAPE = ["model.num_layers=4", "model.hidden_size=32", "model.num_attention_heads=4", "model.num_moe_experts=8"]


def config(*overrides: str) -> RunConfig:
    return load_config("gpt_rpo", [*GIVEN, *(f"model.{name}" for name in overrides)], notify=lambda text: None)


def test_megatron_s_keys_make_the_architecture_and_json_keeps_it() -> None:
    cfg = config(
        "num_layers=4", "hidden_size=32", "num_attention_heads=4", "num_moe_experts=8", "moe_router_topk=3",
        "moe_layer_freq=[0,1,1,1]", "moe_shared_expert_intermediate_size=20", "moe_router_score_function=sigmoid",
        "moe_router_enable_expert_bias=true", "moe_router_num_groups=4", "moe_router_group_topk=3",
    )  # fmt: skip
    found = architecture_from_yaml(cfg.model, vocab_size=50)
    assert found.experts == Experts(
        8, 128, 3, (0, 1, 1, 1), "sigmoid", moe_router_enable_expert_bias=True, moe_router_num_groups=4,
        moe_router_group_topk=3, moe_shared_expert_intermediate_size=20,
    )  # fmt: skip
    assert [found.has_experts(layer) for layer in range(4)] == [False, True, True, True]
    import json

    assert GPTArchitecture.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert GPTArchitecture.from_dict(json.loads(json.dumps(DENSE.to_dict()))) == DENSE
    old = {name: value for name, value in DENSE.to_dict().items() if name != "experts"}
    assert GPTArchitecture.from_dict(old) == DENSE  # of a checkpoint from before there were experts


def test_a_pattern_of_layers_is_written_one_way() -> None:
    assert layer_pattern(1, 3) == layer_pattern([1, 1, 1], 3) == 1
    assert layer_pattern(2, 4) == (1, 0, 1, 0)
    for wrong in ([1, 0], [0, 0, 0]):
        with pytest.raises(ConfigError, match=r"model.moe_layer_freq=\[.*\] must have a 1 in it, and 3 entries"):
            layer_pattern(wrong, 3)


REFUSED: dict[str, tuple[GPTArchitecture, list[str], str]] = {
    "tensor parallel without sequence parallel": (
        MODEL, ["tensor_model_parallel_size=2"],
        "tensor_model_parallel_size=2 with a mixture of experts needs model.sequence_parallel=true",
    ),
    "no divisor": (
        MODEL, ["expert_model_parallel_size=3"],
        "expert_model_parallel_size=3 does not divide the model's num_moe_experts=8; choose a divisor of it",
    ),
    "experts split unevenly": (
        MODEL, ["expert_model_parallel_size=2", "expert_tensor_parallel_size=5", "moe_token_dispatcher_type=allgather"],
        "expert_tensor_parallel_size=5 does not divide the model's moe_ffn_hidden_size=24; choose a divisor of it",
    ),
    "experts split by themselves": (
        MODEL, ["expert_tensor_parallel_size=2"],
        "expert_tensor_parallel_size=2 is not model.tensor_model_parallel_size=1: that needs "
        "model.expert_model_parallel_size above 1",
    ),
    "experts of a dense model": (
        DENSE, ["expert_model_parallel_size=2"],
        "expert_model_parallel_size=2 needs a mixture of experts, and the model has none: remove it",
    ),
    "router losses of a dense model": (
        DENSE, ["moe_aux_loss_coeff=0.1"],
        "moe_aux_loss_coeff=0.1 needs a mixture of experts, and the model has none: remove it",
    ),
    "FP8": (
        MODEL, ["rpo.logprob_precision=fp8_tensorwise"],
        "rpo.logprob_precision=fp8_tensorwise does not go with a mixture of experts, whose experts get any number of "
        "tokens: set it to bf16",
    ),
    "a bias that moves": (
        MODEL, ["moe_router_bias_update_rate=0.001"],
        "moe_router_bias_update_rate=0.001 would route policy and reference by different biases: set it to 0",
    ),
    "biases": (
        replace(MODEL, bias=True), [],
        "bias=true does not go with a mixture of experts: set it to false, or qkv_bias=true",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_one_line(case: str) -> None:
    architecture, overrides, message = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        check_expert_layout(config(*overrides), architecture)
    assert str(caught.value) == f"model.{message}"


def test_what_a_cpu_cannot_do_and_a_gpu_can() -> None:
    cfg = config("expert_model_parallel_size=2", "tensor_model_parallel_size=2", "sequence_parallel=true")
    check_expert_layout(cfg, MODEL)
    check_fresh_experts(cfg)
    cfg.trainer.accelerator = "cpu"
    with pytest.raises(ConfigError) as caught:
        check_expert_layout(cfg, MODEL)
    assert str(caught.value) == (
        "model.expert_tensor_parallel_size=2 with model.moe_token_dispatcher_type=alltoall needs "
        "trainer.accelerator=gpu: set the latter to allgather, or the former to 1"
    )
    with pytest.raises(ConfigError, match=r"^model.expert_model_parallel_size=2 with fresh weights needs trainer.acc"):
        check_fresh_experts(cfg)
    check_fresh_experts(config())


def test_a_nemo_file_of_experts_is_refused_before_training() -> None:
    cfg = config()
    cfg.exp_manager.checkpoint_callback_params.save_nemo_on_train_end = True
    with pytest.raises(ConfigError, match=r"a \.nemo has no mixture of experts; set save_hf_on_train_end=true"):
        check_expert_layout(cfg, MODEL)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (["moe_router_topk=9"], "model.moe_router_topk=9 is more than model.num_moe_experts=8"),
        (
            ["moe_router_topk=1"],
            "model.moe_router_topk=1 needs model.moe_router_pre_softmax=true: every score would be",
        ),
        (["moe_router_enable_expert_bias=true"], "needs model.moe_router_score_function=sigmoid"),
        (["moe_router_num_groups=2"], "model.moe_router_num_groups and model.moe_router_group_topk need each other"),
        (["moe_router_num_groups=3", "moe_router_group_topk=1"], "model.moe_router_num_groups=3 must divide"),
    ],
)
def test_a_router_that_there_is_not(shape: list[str], message: str) -> None:
    cfg = load_config("gpt_rpo", [*GIVEN, *SHAPE, *(f"model.{name}" for name in shape)], notify=lambda text: None)
    with pytest.raises(ConfigError) as caught:
        architecture_from_yaml(cfg.model, 50)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_ranks_that_are_no_multiple_of_the_experts() -> None:
    cfg = config("expert_model_parallel_size=4", "pipeline_model_parallel_size=2", "global_batch_size=64")
    validate_parallel(cfg, 8)
    with pytest.raises(ConfigError) as caught:
        validate_parallel(cfg, 12)
    asked = "model.expert_model_parallel_size=4 × model.pipeline_model_parallel_size=2"
    assert str(caught.value) == f"12 ranks are no multiple of {asked}: start a multiple of 8"


def test_router_losses_go_with_means_over_pairs_alone() -> None:
    losses = ["rpo.base_loss=dr_dpo", "rpo.enabled=false", "moe_z_loss_coeff=0.01"]
    with pytest.raises(ConfigError, match=r"model.moe_z_loss_coeff=0.01: the loss 'dr_dpo' is no mean over pairs"):
        validate_config(config(*losses))
    validate_config(config("moe_z_loss_coeff=0.01"))


@pytest.mark.parametrize(
    "override", ["moe_token_dropping=true", "moe_expert_capacity_factor=1.25", "moe_input_jitter_eps=0.01"]
)
def test_what_would_make_a_log_prob_depend_on_its_batch_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        config(override)


def test_the_settings_of_another_source_are_named_one_by_one() -> None:
    other: Any = replace(MODEL, experts=replace(EXPERTS, moe_router_topk=4))
    with pytest.raises(ConfigError, match=r"has moe_router_topk=4, the model moe_router_topk=2; give the config.json"):
        MODEL.check_source(other, "config.json", "config.json")


def test_the_fewest_ranks_hold_every_expert() -> None:
    from nemo_rpo.commands.on_ranks import fewest_ranks

    split = ["tensor_model_parallel_size=2", "sequence_parallel=true", "expert_model_parallel_size=4"]
    assert fewest_ranks(config(*split)) == 8
    assert fewest_ranks(config(*split, "expert_tensor_parallel_size=1")) == 4
    assert fewest_ranks(config("context_parallel_size=3", "expert_model_parallel_size=2")) == 6
    assert fewest_ranks(config("tensor_model_parallel_size=2")) == 2
