"""The ``nemo-rpo`` command as a person meets it: a process, its words and its exit status."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT
from torchrun import run_ranks

from nemo_rpo import __version__, em, losses
from nemo_rpo.cli import COMMANDS


def nemo_rpo(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "nemo_rpo.cli", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_help_lists_every_command_with_an_example() -> None:
    for arguments in ((), ("--help",)):
        result = nemo_rpo(*arguments)
        assert result.returncode == 0 and not result.stderr
        for name, command in COMMANDS.items():
            assert command.summary in result.stdout
            assert any(f"nemo-rpo {name}" in example for example in command.examples)
            assert all(example in result.stdout for example in command.examples)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_a_command(name: str) -> None:
    result = nemo_rpo(name, "--help")
    assert result.returncode == 0 and COMMANDS[name].examples[0] in result.stdout


def test_version() -> None:
    assert nemo_rpo("--version").stdout == f"nemo-rpo {__version__}\n"


def test_unknown_command() -> None:
    result = nemo_rpo("trian")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("nemo-rpo: error: unknown command 'trian'; there are: train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.optm.lr=1"], "unknown key model.optm.lr, did you mean model.optim.lr? (override model.optm.lr=1)"),
        ([], "model.data.data_prefix.train is not set: give the file of training pairs"),
        (
            ["model.seed=1", "--nproc-per-node", "3", "model.data.data_prefix.train=x", "-cn", "gpt_rpo"],
            "model.global_batch_size=128 is no multiple of model.micro_batch_size=1 × 3 data-parallel ranks: "
            "choose a multiple of 3",
        ),
        (
            ["model.data.data_prefix.train=x", "trainer.num_nodes=2"],
            "trainer.num_nodes=2, but nemo-rpo train starts the ranks of one machine: run it on every node with the "
            "same --rdzv-endpoint HOST:PORT, or set trainer.num_nodes=1",
        ),
        (
            ["--config-name", "nothing", "--config-path", "tests/megatron"],
            "no nothing.yaml in tests/megatron; there are: tiny",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    result = nemo_rpo("train", *arguments)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


@pytest.mark.distributed
def test_a_mistake_under_torchrun_is_said_once() -> None:
    example = ROOT / "examples" / "train_gpt_rpo.py"
    result = run_ranks(example, 2, "--config-name", "demo", "model.rpo.alpa=3", check=False, timeout=60, forked=False)
    assert result.returncode != 0 and "exitcode  : 2 " in result.stderr
    message = "error: unknown key model.rpo.alpa, did you mean model.rpo.alpha? (override model.rpo.alpa=3)"
    assert result.stderr.count("unknown key") == result.stderr.count(message) == 1


def test_the_command_line_needs_no_heavy_package() -> None:
    code = """
import sys
for name in ("megatron", "transformers", "omegaconf", "pyarrow", "tqdm", "matplotlib"):
    sys.modules[name] = None
from nemo_rpo.cli import main
sys.exit(main(["train", "model.seed=1"]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.stderr == "error: omegaconf is not installed; run: pip install 'nemo-rpo[mcore]'\n"
    assert result.returncode == 2


# What each help may load beside the standard library: numpy where a default or a choice comes from data modules.
_HEAVY = ("torch", "omegaconf", "pyarrow", "transformers", "megatron", "psutil", "matplotlib", "tqdm")


def test_settings_and_help_are_read_without_torch() -> None:
    """Importing the settings and building every parser loads none of the heavy packages; losses and EM come on use."""
    code = f"""
import importlib, json, sys, time
began = time.process_time()
import nemo_rpo.config.load, nemo_rpo.config.validate, nemo_rpo.config.architecture, nemo_rpo.commands.on_ranks
from nemo_rpo.cli import COMMANDS, _parser
settings = time.process_time() - began
loaded = {{"settings": [name for name in {_HEAVY} if name in sys.modules]}}
for name, command in COMMANDS.items():
    importlib.import_module(command.module).add_arguments(_parser(name))
    loaded[name] = [package for package in {_HEAVY} if package in sys.modules]
import nemo_rpo.em, nemo_rpo.losses
lazily = "torch" not in sys.modules and "build_loss" in dir(nemo_rpo.losses)
from nemo_rpo.em import Votes
print(json.dumps([loaded, settings, lazily, "torch" in sys.modules]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded, seconds, lazily, after = json.loads(result.stdout)
    assert loaded == {name: [] for name in ("settings", *COMMANDS)}
    assert lazily and after
    assert seconds < 1  # of the CPU; torch alone takes longer


@pytest.mark.parametrize("package", [em, losses], ids=lambda package: package.__name__)
def test_a_type_checker_sees_what_is_exported(package: ModuleType) -> None:
    """The names under ``TYPE_CHECKING`` are those that are imported on use, each from the module that defines it."""
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert sorted(seen) == package.__all__
    for name, module in seen.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(package, "nothing")  # noqa: B009
