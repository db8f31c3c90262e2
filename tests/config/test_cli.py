"""The ``nemo-rpo`` command as a person meets it: a process, its words and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from torchrun import run_ranks

from nemo_rpo import __version__
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
