"""docs/tutorial.md is run from its CSV to its decision: its own commands and its own YAML, on the tiny world."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from paths import ROOT
from torchrun import run_process

from .runs import World

pytestmark = pytest.mark.distributed

# What a model of 32 positions and 48 pairs need in place of what the page says; each stands in it.
TINY = {
    "--seq-length 2048": "--seq-length 16",
    "encoder_seq_length: 2048": "encoder_seq_length: 16\n      micro_batch_size: 8",
    "global_batch_size: 64": "global_batch_size: 8",
}
# The runs themselves are forks here; what --beside-plain starts is test_beside_plain's.
PLAIN = ["model.rpo.enabled=false", "exp_manager.explicit_log_dir=results/mine-plain"]


def blocks() -> list[str]:
    """The indented blocks of the page, for the tiny world."""
    text = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    for said, tiny in TINY.items():
        assert said in text
        text = text.replace(said, tiny)
    found = re.findall(r"(?:^    .*\n(?:^\n(?=    ))?)+", text, re.MULTILINE)
    return ["\n".join(line[4:] for line in block.splitlines()) for block in found]


def run(*argv: str) -> None:
    result = run_process(["-m", "nemo_rpo.cli", *argv])
    assert result.returncode == 0, f"{shlex.join(argv)}\n{result.stdout}\n{result.stderr}"
    assert "Warning" not in result.stderr, result.stderr


def write_labels(data: Path, out: Path, header: list[str]) -> None:
    """Four annotators on every pair of the world, under the columns that the page has; the last is wrong every time."""
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        for i, line in enumerate(data.read_text().splitlines()):
            row = json.loads(line)
            for k in range(4):
                sides = {side: row[side] for side in ("chosen", "rejected")}
                if k == 3:
                    sides = dict(zip(sides, reversed(sides.values()), strict=True))
                writer.writerow({"pair_id": f"p{i}", "prompt": row["prompt"], "annotator": f"w{k}"} | sides)


def test_every_command_of_the_tutorial(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(world.folder / "model", "MODEL")
    write_labels(world.folder / "train.jsonl", Path("labels.csv"), blocks()[0].splitlines()[0].split(","))
    run("convert", str(world.folder / "validation.jsonl"), "--to", "hf", "--out", "test.csv")
    Path("gold.csv").write_text("pair_id,gold\n" + "".join(f"p{i},chosen\n" for i in range(20)))
    settings = [block for block in blocks() if re.match(r"\w+: ", block)]
    Path("mine.yaml").write_text("\n".join(settings))
    assert len(settings) == 2
    ran = []
    for block in blocks():
        for line in block.splitlines():
            if not line.startswith("nemo-rpo "):
                continue
            command = shlex.split(line, comments=True)[1:]
            ran.append(command[0])
            if "--beside-plain" in command:
                command.remove("--beside-plain")
                run(*command)
                run(*command, *PLAIN)
            else:
                run(*command)
    assert ran == "annotators annotators validate plan train train report export export".split()
    first_lines = Path("results/mine/report.md").read_text().split("## Warnings")[0]
    assert "Did it help?" in first_lines
    for written in ("annotators.html", "annotators.csv", "results/mine/report.html", "results/mine/hf", "better.jsonl"):
        assert Path(written).exists(), written
