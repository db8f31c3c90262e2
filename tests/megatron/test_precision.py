"""FP8 log-probs as far as a CPU can tell: what may be asked for, what the engine does with it, and what step 0 says.

The products themselves are emulated (``ranks_precision.py``); Transformer Engine's have not run in a test.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from torchrun import run_ranks

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.lengths import length_multiple
from nemo_rpo.config.schema import ModelConfig, RPOConfig
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.network.precision import Machine, check_machine, check_sizes

pytestmark = pytest.mark.every_release

RECIPES = frozenset({"Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling"})
HOPPER, BLACKWELL = Machine((9, 0), "2.11.0", RECIPES), Machine((10, 0), "2.11.0", RECIPES)


@pytest.mark.parametrize(
    ("precision", "machine", "said"),
    [
        ("fp8_tensorwise", Machine(None, None), "needs a GPU, and torch sees none: set it to bf16"),
        ("fp8_tensorwise", Machine((8, 0), "2.11.0", RECIPES), "8.9, and this one has 8.0: set it to bf16"),
        ("fp8_blockwise", Machine((8, 9), "2.11.0", RECIPES), "9.0, and this one has 8.9: set it to fp8_tensorwise"),
        ("fp8_mxfp8", HOPPER, "10.0, and this one has 9.0: set it to fp8_tensorwise"),
        (
            "fp8_mxfp8",
            Machine((12, 0), "2.11.0", RECIPES, (("fp8_mxfp8", "not on 12.0+ architectures yet."),)),
            "is refused by Transformer Engine (not on 12.0+ architectures yet): set it to another precision",
        ),
        ("fp8_tensorwise", Machine((9, 0), None), "needs Transformer Engine: install"),
        ("fp8_blockwise", Machine((9, 0), "2.1.0"), "Float8BlockScaling, which 2.1.0 does not have: install 2.3 or n"),
        (
            "fp8_blockwise",
            Machine((9, 0), "2.11.0", RECIPES, (("fp8_blockwise", "FP8 needs CUDA >= 12.9."),)),
            "is refused by Transformer Engine (FP8 needs CUDA >= 12.9): set it to another precision",
        ),
    ],
)
def test_a_machine_without_fp8_is_told_what_it_lacks(precision: str, machine: Machine, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        check_machine(precision, machine)
    assert f"model.rpo.logprob_precision={precision}" in str(error.value) and "\n" not in str(error.value)
    check_machine("bf16", machine)


def test_hopper_has_two_and_blackwell_all() -> None:
    for precision in ("fp8_tensorwise", "fp8_blockwise"):
        check_machine(precision, HOPPER)
        check_machine(precision, BLACKWELL)
    check_machine("fp8_mxfp8", BLACKWELL)


def llama(**sizes: int) -> GPTArchitecture:
    shape = {
        "num_layers": 16, "hidden_size": 2048, "ffn_hidden_size": 8192, "num_attention_heads": 32,
        "num_query_groups": 8, "kv_channels": 64,
    }  # fmt: skip
    return GPTArchitecture(vocab_size=128256, max_position_embeddings=8192, **shape | sizes)


def test_sizes_that_do_not_suit_are_named() -> None:
    for precision in ("fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8"):
        check_sizes(precision, llama(), tensor_parallel=4)
    check_sizes("fp8_tensorwise", llama(ffn_hidden_size=5504), tensor_parallel=2)
    with pytest.raises(ConfigError, match=r"multiples of 128, and ffn_hidden_size / tensor ranks is 2752"):
        check_sizes("fp8_blockwise", llama(ffn_hidden_size=5504), tensor_parallel=2)
    check_sizes("fp8_mxfp8", llama(ffn_hidden_size=5504), tensor_parallel=2)
    with pytest.raises(
        ConfigError, match=r"multiples of 32, and ffn_hidden_size / tensor ranks is 2736: set it to fp8_t"
    ):
        check_sizes("fp8_mxfp8", llama(ffn_hidden_size=5472), tensor_parallel=2)


@pytest.mark.parametrize(
    ("precision", "tensor", "context", "multiple"),
    [
        ("bf16", 1, 1, 1),
        ("bf16", 4, 1, 4),
        ("bf16", 1, 2, 4),
        ("bf16", 2, 2, 8),
        ("fp8_tensorwise", 1, 1, 16),
        ("fp8_tensorwise", 2, 2, 64),
        ("fp8_blockwise", 4, 2, 1024),
        ("fp8_mxfp8", 2, 2, 128),
    ],
)
def test_what_is_left_on_a_rank_suits_its_products(precision: str, tensor: int, context: int, multiple: int) -> None:
    """Tokens of a rank: the sequence over its context ranks, and under sequence parallelism over the tensor ranks."""
    rpo = RPOConfig(reference_logprob_precision=precision)  # of the two precisions the wider decides
    model = ModelConfig(
        tensor_model_parallel_size=tensor, sequence_parallel=tensor > 1, context_parallel_size=context, rpo=rpo
    )
    assert length_multiple(model) == multiple


# --- in the engine


@pytest.fixture(scope="module")
def found(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("precision")
    run_ranks(Path(__file__).with_name("ranks_precision.py"), 1, world, out)
    return json.loads((out / "found.json").read_text())


@pytest.mark.distributed
@pytest.mark.parametrize("run", ["bf16", "swapped", "resident", "recompute"])
def test_policy_and_reference_of_one_precision_have_no_margin(found: dict[str, Any], run: str) -> None:
    assert found[run]["largest difference"] == 0 and found[run]["refused"] is None


@pytest.mark.distributed
def test_the_measured_error_is_said(found: dict[str, Any]) -> None:
    pattern = (
        r"fp8_tensorwise log-probs differ from bf16's by (\S+) nats a token on average, (\S+) at most, and by up to"
    )
    mean, largest = map(float, re.match(pattern, found["swapped"]["said"]).groups())
    assert 0.005 < mean < largest < 3
    assert found["reference alone"]["said"] == found["swapped"]["said"] and found["bf16"]["said"] == ""


@pytest.mark.distributed
def test_recomputed_layers_run_in_the_same_precision(found: dict[str, Any]) -> None:
    """In bf16 the recomputed activations would be others, and so would the gradient."""
    assert found["recompute"]["grad_norm"] == pytest.approx(found["swapped"]["grad_norm"], rel=1e-6)
    assert found["bf16"]["grad_norm"] != pytest.approx(found["swapped"]["grad_norm"], rel=1e-3)


@pytest.mark.distributed
def test_only_the_frozen_policy_is_switched(found: dict[str, Any]) -> None:
    """The same two precisions in one module and in two, and, of the same weights, the other way round."""
    swapped, resident, reference = (found[run] for run in ("asymmetric", "asymmetric, resident", "reference alone"))
    assert swapped["largest difference"] == resident["largest difference"] == reference["largest difference"] > 0.01
    assert swapped["loss"] == resident["loss"] != reference["loss"]


@pytest.mark.distributed
def test_step0_decides_over_what_rounding_comes_to(found: dict[str, Any]) -> None:
    assert "0.05 are allowed (model.rpo.step0_tolerance)" in found["asymmetric"]["refused"]
    assert found["cached"]["refused"].endswith("fp8_blockwise, whose log-probs do not depend on their batch")
    assert found["asymmetric, allowed"]["refused"] is None
    steep = found["asymmetric, steep link"]["refused"]
    assert re.match(
        r"rounding alone moves the log-odds of a label by up to \S+ under the loss 'ipo', 1 are allowed", steep
    )
    assert "model.rpo.step0_link_tolerance" in steep and "\n" not in steep
