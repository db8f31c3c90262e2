"""Canaries of :mod:`nemo_rpo.megatron.compat`: what has moved upstream fails here, by the name of reach and place.

And the rule that reaches stand there and nowhere else, read from the package's source.
"""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from reach_rule import violations
from torchrun import run_ranks

from nemo_rpo.errors import ReleaseError
from nemo_rpo.megatron.compat import places, releases, torch_internals, transformer_engine
from nemo_rpo.megatron.compat.gpt_model import become
from nemo_rpo.megatron.compat.layer_spec import set_part
from nemo_rpo.megatron.compat.places import REACHES, whats_wrong

pytestmark = pytest.mark.every_release

releases.import_all()
PLACES = [(name, place) for name, reach in REACHES.items() for place in reach.places]


@pytest.mark.parametrize(("name", "place"), PLACES, ids=[f"{name} {place}" for name, place in PLACES])
def test_a_place_is_where_it_was(name: str, place: str) -> None:
    if place.startswith("transformer_engine"):
        pytest.importorskip("transformer_engine.pytorch", reason="Transformer Engine is not installed")
    assert whats_wrong(place) is None


@pytest.mark.parametrize("name", REACHES)
def test_a_reach_gives_its_reason(name: str) -> None:
    assert "Reason: " in REACHES[name].reason


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("torch.optim:AdamX", "torch.optim has no AdamX"),
        ("torch.optimal:AdamW", "torch.optimal cannot be imported (No module named 'torch.optimal')"),
        ("torch.nn:Linear.forward(input, colour)", "torch.nn:Linear.forward takes no colour"),
        ("torch.nn:Linear[in_features, colour]", "torch.nn:Linear knows no colour"),
    ],
)
def test_what_has_moved_is_said(place: str, wrong: str) -> None:
    assert whats_wrong(place) == wrong


# --- releases


def test_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("0.16.1", "0.19.2+3d94510", "0.18.0rc0"):
        assert releases.check_megatron_core(version) is None
    with pytest.raises(
        ReleaseError, match=r"megatron-core 0\.15\.3 is too old: install megatron-core>=0\.16\.1,<0\.20"
    ):
        releases.check_megatron_core("0.15.3")
    assert "megatron-core 0.20.0 is newer than those" in releases.check_megatron_core("0.20.0")
    reach = places.Reach("gpt_model.become", "", ("megatron.core:GPTModelOfTheFuture",))
    monkeypatch.setitem(REACHES, reach.name, reach)
    moved = r"has changed \(gpt_model\.become: megatron\.core has no GPTModelOfTheFuture\): install megatron-core>="
    with pytest.raises(ReleaseError, match=moved):
        releases.check_megatron_core("0.20.0")


def test_the_bounds_are_those_that_pip_is_given() -> None:
    asked = f'"megatron-core>={releases._text(releases.OLDEST)},<{releases._text(releases.TOO_NEW)}"'
    assert asked in (ROOT / "pyproject.toml").read_text()


def test_what_no_longer_fits_is_refused() -> None:
    class Ours(torch.nn.Linear):
        pass

    layer = torch.nn.Linear(2, 2)
    become(layer, Ours)
    assert type(layer) is Ours
    with pytest.raises(ReleaseError, match="makes GPTModel's output layer a Ours, which Ours does not extend"):
        become(layer, Ours)
    parts = types.SimpleNamespace(submodules=types.SimpleNamespace(norm=None))
    set_part(parts, "norm", Ours)
    assert parts.submodules.norm is Ours
    with pytest.raises(ReleaseError, match="has no norms in its layer spec"):
        set_part(parts, "norms", Ours)


# --- what the reaches do


@pytest.fixture(scope="module")
def found(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("compat")
    run_ranks(Path(__file__).with_name("ranks_compat.py"), 1, world, out)
    return json.loads((out / "found.json").read_text())


@pytest.mark.distributed
def test_decoder_output_gives_what_GPTModel_gives(found: dict[str, Any]) -> None:
    difference, spread = found["forward"]
    assert difference == 0 and spread > 0.1


@pytest.mark.distributed
def test_the_built_model_and_its_optimizer_are_made_of_our_parts(found: dict[str, Any]) -> None:
    ours = ["ScoringHead", "PrecisionLayer", "RotarySelfAttention", "CausalSDPA", "RMSNorm", "RMSNorm", "SwiGLU"]
    assert found["parts"] == [*ours, "TorchFusedAdam"]
    assert found["tied"]


@pytest.mark.distributed
def test_step_if_is_megatrons_own_step(found: dict[str, Any]) -> None:
    """To the bit, with clipping; and what is not allowed moves nothing."""
    assert found["steps are equal"] and found["a step moves"] and found["refused moves nothing"]


@pytest.mark.distributed
def test_main_grad_holds_the_gradient_that_autograd_would_give(found: dict[str, Any]) -> None:
    difference, largest = found["main_grad"]
    assert 0 < largest and difference < 1e-5 * largest


@pytest.mark.distributed
def test_what_goes_to_a_device_arrives(found: dict[str, Any]) -> None:
    """Of micro-batches and of the reference's weights, on a CPU under another name."""
    assert found["transfer"] and found["swap"]


def test_fused_adamw_is_the_step_of_torchs_class() -> None:
    options = {"lr": 0.1, "weight_decay": 0.2, "eps": 1e-8, "amsgrad": False, "maximize": False}
    parameter = torch.nn.Parameter(torch.arange(1.0, 6.0))
    parameter.grad = torch.linspace(-1, 1, 5)
    ours, moments = parameter.detach().clone(), [torch.zeros(5), torch.zeros(5)]
    step = [torch.tensor(0.0)]
    torch_internals.fused_adamw(
        [ours], [parameter.grad], [moments[0]], [moments[1]], [], step, beta1=0.9, beta2=0.99, **options
    )
    torch.optim.AdamW([parameter], betas=(0.9, 0.99), **options).step()
    assert torch.allclose(ours, parameter.detach(), rtol=1e-6, atol=0)


def test_storage_info_keeps_the_fields_that_a_reader_asks_for() -> None:
    info = torch_internals.storage_info("__0_0.distcp", 8, 16)
    assert (info.relative_path, info.offset, info.length) == ("__0_0.distcp", 8, 16)


def te_module(name: str, **attributes: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    return module


@pytest.mark.parametrize("since_29", [True, False])
def test_transformer_engine_before_and_since_2_9(since_29: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for both forms of its interface; the real one is asked by ``test_a_place_is_where_it_was``."""

    def autocast(**options: Any) -> dict[str, Any]:
        return options

    def supported() -> tuple[bool, str]:
        return True, ""

    def refused() -> tuple[bool, str]:
        return False, "needs a newer card"

    te, fp8 = te_module("te", fp8_autocast=autocast), te_module("fp8", check_fp8_support=supported)
    fp8.check_fp8_block_scaling_support = fp8.check_mxfp8_support = refused
    if since_29:
        te = te_module("te", autocast=autocast, is_fp8_available=lambda return_reason: supported())
        te.is_fp8_block_scaling_available = te.is_mxfp8_available = lambda return_reason: refused()
    else:
        te.fp8 = fp8
        monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.fp8", fp8)
    monkeypatch.setitem(sys.modules, "transformer_engine", te_module("transformer_engine", pytorch=te))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", te)
    refusals = (("fp8_blockwise", "needs a newer card"), ("fp8_mxfp8", "needs a newer card"))
    assert transformer_engine.objections() == refusals
    entered = transformer_engine.autocast("recipe")
    assert entered == ({"recipe": "recipe"} if since_29 else {"enabled": True, "fp8_recipe": "recipe"})


# --- nowhere else

EXEMPT = ("nemo_rpo/megatron/compat/", "nemo_rpo/megatron/cpu/patches.py")
# Of packages that the engine does not stand on; each where its one use is.
OF_OTHERS = {
    "nemo_rpo/data/tokenizers/files.py reads ._tokenizer",  # tokenizers gives its Rust object under no other name
    "nemo_rpo/integrations/trl/callback.py reads ._prepare_inputs",  # of transformers' Trainer, made to be overridden
}


def test_reaches_stand_in_compat_alone() -> None:
    found = set()
    for file in sorted((ROOT / "nemo_rpo").rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        if not path.startswith(EXEMPT):
            found |= {re.sub(r":\d+", "", line) for line in violations(path, file.read_text(encoding="utf-8"))}
    assert found == OF_OTHERS


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("from torch.distributed.checkpoint.filesystem import _StorageInfo", "imports _StorageInfo"),
        ("import torch\nlinear = torch.ops.mkldnn._linear_pointwise", "reads ._linear_pointwise"),
        ("from torch._utils import x", "imports _utils"),
        ("from unittest import mock", "imports unittest.mock"),
        ("import unittest.mock", "imports unittest.mock"),
        ("def f(layer, kind):\n    layer.__class__ = kind", "sets __class__"),
        ("import megatron.core.optimizer as optimizer\noptimizer.Adam = 1", "sets optimizer.Adam"),
        ("import torch\ntorch.matmul = None", "sets torch.matmul"),
        ("import torch\nsetattr(torch.cuda, 'x', 1)", "sets torch.cuda"),
        ("def f(model):\n    return model._preprocess()", "reads ._preprocess"),
    ],
)
def test_a_reach_elsewhere_is_found(source: str, said: str) -> None:
    assert [line.split(" ", 1)[1] for line in violations("x.py", source)] == [said]
