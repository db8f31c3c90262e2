"""A loop small enough for seconds: two rounds of forty prompts, four judges of whom the truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from paths import environment
from torchrun import run_process

from benchmarks.loop_world import settings, write_world
from nemo_rpo.data.files.stage import read_table
from nemo_rpo.training.logs.metrics import read_metrics

_WALL_CLOCK = {"time", "latency"}  # of a verdict


def write(folder: Path) -> Path:
    """The world; its folder."""
    write_world(folder, 0, 52, pretraining=80)
    return folder


def block(world: Path, folder: Path, **changed: Any) -> dict[str, Any]:
    """``online`` of a loop in ``folder``; of a block that is changed the rest stays."""
    online = settings(world, folder, "re_dpo", 0, 32, 12, 2)
    online["judges"] = [judge(k, eta) for k, eta in enumerate((0.95, 0.9, 0.7, 0.4))]
    online["sample"] |= {"max_tokens": 16, "samples": 3}
    online["train"]["overrides"] = ["model.micro_batch_size=8", "model.global_batch_size=8", "trainer.dpo.max_epochs=1"]
    online["train"]["overrides"] += [
        "trainer.dpo.save_interval=2",
        "exp_manager.checkpoint_callback_params.save_top_k=1",
    ]
    for name, value in changed.items():
        online[name] = online.get(name, {}) | value if isinstance(value, dict) else value
    return online


def judge(place: int, eta: float) -> dict[str, Any]:
    of = {"world": 0, "judge": place, "eta": eta}
    call = "benchmarks.loop_world:vote"
    return {"name": f"j{place}", "kind": "program", "call": call, "of": "pair", "arguments": of}


def anchors(world: Path) -> dict[str, Any]:
    return {"path": str(world / "anchors.jsonl"), "per_round": 30}


def arguments(world: Path, folder: Path, **changed: Any) -> list[str]:
    """Of ``python``: the command, with its settings written beside the loop's folder."""
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({"online": block(world, folder, **changed)}))
    return ["-m", "nemo_rpo.cli", "iterate", str(path)]


def iterate(world: Path, folder: Path, status: int = 0, **changed: Any) -> str:
    """Runs the loop to its end; what it said."""
    ran = run_process(arguments(world, folder, **changed), environment())
    assert ran.returncode == status, ran.stderr[-4000:]
    return ran.stderr


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a loop by its path, without what a clock has put into it; checkpoints by their names."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".log" or path.name == ".lock":
            continue
        if "/checkpoints/" in f"/{name}":
            found[str(path.parent.relative_to(folder))] = "checkpoint"
        elif path.suffix == ".parquet" and "fit=" not in name:
            rows, inputs = read_table(path)
            found[name] = [{k: v for k, v in row.items() if k not in _WALL_CLOCK} for row in rows], inputs
        elif path.name == "metrics.jsonl":
            found[name] = read_metrics(path.parent, timing=False)
        elif path.name == "judges.csv":
            lines = [line.split(",") for line in path.read_text().splitlines()]
            seconds = lines[0].index("seconds")
            found[name] = [[cell for i, cell in enumerate(line) if i != seconds] for line in lines]
        else:
            found[name] = path.read_bytes().replace(str(folder).encode(), b"LOOP")
    return found


def evaluation(folder: Path, number: int) -> dict[str, Any]:
    return json.loads((folder / f"round={number:03d}/evaluation.json").read_text())


def written(folder: Path) -> dict[str, int]:
    """When each file was; the tables of all judges and the pages are made anew each time, and the same."""
    again = ("verdicts.parquet", "report.html")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in again]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}
