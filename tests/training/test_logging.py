"""What a run says and writes, and that resuming leaves no seam in it."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from nemo_rpo.config.places import run_folder
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError, MissingExtraError
from nemo_rpo.training.logs.metrics import MetricsWriter, TensorBoardWriter, WandbWriter, metric_writers, read_metrics
from nemo_rpo.training.logs.progress import Progress
from nemo_rpo.training.logs.run_log import RunLog, startup_log
from nemo_rpo.training.outputs.summary import AnnotatorRow, annotator_table, course_table, final_report


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def figures(step: int) -> dict[str, float]:
    return {"loss": 1 / 3 / step, "acc": 0.5, "margin": 0.1 * step}


def train(log: RunLog, first: int, last: int, seconds: float = 0.5) -> None:
    for step in range(first, last + 1):
        log.train(step, figures(step), seconds=seconds, pairs=8, tokens=1000)
        if step % 4 == 0:
            log.record("val", step, figures(step))


def test_a_resumed_file_equals_an_unbroken_one(tmp_path: Path) -> None:
    with RunLog(RunConfig(), tmp_path / "whole", 12) as log:
        train(log, 1, 12)
    with RunLog(RunConfig(), tmp_path / "broken", 12) as log:
        train(log, 1, 10)  # checkpoint at 6; killed in the middle of a line
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "split": "tra')
    with RunLog(RunConfig(), tmp_path / "broken", 12, resume_step=6) as log:
        train(log, 7, 12, seconds=9.0)
    whole, broken = (read_metrics(tmp_path / name, timing=False) for name in ("whole", "broken"))
    assert broken == whole and [row["step"] for row in whole if row["split"] == "train"] == list(range(1, 13))
    assert [row["step"] for row in whole if row["split"] == "val"] == [4, 8, 12]
    assert read_metrics(tmp_path / "whole") != read_metrics(tmp_path / "broken")  # time/… tells them apart


def test_a_fresh_run_keeps_an_earlier_file(tmp_path: Path) -> None:
    for value in (1, 2):
        writer = MetricsWriter(tmp_path)
        writer.write(1, "train", {"loss": value})
        writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "split": "train", "loss": 2}]
    assert json.loads((tmp_path / "metrics.previous.jsonl").read_text())["loss"] == 1


def test_every_line_is_whole_and_strict_json(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    exact = torch.tensor(0.1, dtype=torch.float64)
    writer.write(3, "sweep", {"loss": exact, "bad": float("nan"), "eta": torch.tensor([0.5, float("inf")]), "n": 7})
    text = (tmp_path / "metrics.jsonl").read_text()  # before close: a killed run keeps it
    assert text == '{"step": 3, "split": "sweep", "loss": 0.1, "bad": null, "eta": [0.5, null], "n": 7}\n'


def test_only_global_rank_0_speaks_and_writes(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    with RunLog(RunConfig(), tmp_path / "run", 4) as log:
        train(log, 1, 4)
        log.note("hello")
        assert log.files == []
    startup_log(RunConfig(), {}, world_size=2)
    assert not (tmp_path / "run").exists() and capsys.readouterr() == ("", "")


def test_plain_lines_at_their_interval_and_at_the_end(tmp_path: Path, capsys) -> None:
    cfg = RunConfig()
    cfg.trainer.log_every_n_steps = 5
    with RunLog(cfg, tmp_path, 12) as log:
        train(log, 1, 12)
        assert log.files == [tmp_path / "metrics.jsonl"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "step 5/12  loss 0.06667  acc 0.5  margin 0.5  16.0 pairs/s  2.0k tokens/s  ETA 0:00:04"
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["5/12", "10/12", "12/12"]
    assert lines[0] == "validation at step 4  loss 0.08333  acc 0.5  margin 0.4"


def test_a_terminal_gets_a_bar_that_starts_where_the_run_resumes() -> None:
    stream = Terminal()
    progress = Progress(total=10, start=4, stream=stream)
    progress.rates.add(seconds=0.5, pairs=4, tokens=100)
    progress.step(5, {"loss": 0.25})
    progress.line("a note")
    progress.close()
    shown = stream.getvalue()
    assert "5/10" in shown and "loss 0.25  8.0 pairs/s  200 tokens/s" in shown
    assert "a note\n" in shown and not re.search(r"step \d+/", shown)


def test_rates_forget_the_slow_first_step() -> None:
    progress = Progress(total=100, stream=io.StringIO())
    for step, seconds in enumerate([30.0] + [0.1] * 60):
        progress.rates.add(seconds=seconds, pairs=1, tokens=1)
        progress.step(step, {})
    assert progress.rates.pairs_per_s == pytest.approx(10.0)


def test_what_the_machine_does_is_said_and_written(tmp_path: Path, capsys, monkeypatch) -> None:
    """A GPU that makes half of its peak; and what two equal runs have in common knows nothing of the machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    cfg = RunConfig()
    cfg.trainer.log_every_n_steps = 1
    with RunLog(cfg, tmp_path, 2) as log:
        for step in (1, 2):
            work = {"flops": 989e12 / 4, "memory": 61.25 * 2**30}
            log.train(step, figures(step), seconds=0.5, pairs=8, tokens=1000, **work)
    row = read_metrics(tmp_path)[-1]
    assert (row["time/tflops_per_device"], row["time/mfu"], row["memory/peak_gib"]) == (494.5, 0.5, 61.25)
    assert "2.0k tokens/s  MFU 50.0%  61.2 GiB  ETA" in capsys.readouterr().err.splitlines()[0]
    assert set(read_metrics(tmp_path, timing=False)[-1]) == {"step", "split", *figures(2)}


def test_start_up_names_the_layout_and_the_batch(capsys) -> None:
    cfg = RunConfig()
    cfg.trainer.accelerator = "cpu"
    cfg.model.tensor_model_parallel_size, cfg.model.pipeline_model_parallel_size = 2, 2
    cfg.model.micro_batch_size, cfg.model.encoder_seq_length = 4, 128
    startup_log(cfg, {"parameters": "1,234", "flash attention": "not in use"}, world_size=8)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(": megatron_gpt_rpo")
    assert dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines[1:]) == {
        "loss": "re_dpo, bounded objective",
        "ranks": "8 (cpu): TP 2 × PP 2 × CP 1 × DP 2",
        "precision": "bf16",
        "pairs a step": "64 = DP 2 × 8 micro-batches × 4",
        "tokens a step": "at most 16,384 (two responses of up to 128 a pair)",
        "parameters": "1,234",
        "flash attention": "not in use",
    }


def test_start_up_names_no_micro_batch_size_of_packs(capsys) -> None:
    cfg = RunConfig()
    cfg.model.data.packed_sequence = True
    startup_log(cfg, {}, world_size=2)
    assert re.search(r"pairs a step +64 = DP 2 × 32, in packs\n", capsys.readouterr().err)


def test_annotators_are_ranked_and_long_tables_cut() -> None:
    rows = [AnnotatorRow("ann", 1500, 0.95, 0.9, 0.01, 0.9), AnnotatorRow("bob", 7, 0.2, 0.9, math.nan, 0.2)]
    assert annotator_table(rows).splitlines() == [
        "annotator  labels      η      ±  change",
        "bob             7  0.200      –  -0.700",
        "ann         1,500  0.950  0.010  +0.050",
    ]
    many = [AnnotatorRow(f"w{i:04d}" + "x" * 40, 1, i / 5000, 0.9, 0.1, 0.9) for i in range(3815)]
    lines = annotator_table(many).splitlines()
    assert len(lines) == 1 + 10 + 1 + 10 and lines[11] == "… 3,795 more"
    assert lines[1].startswith("w0000") and lines[10].startswith("w0009") and lines[-1].startswith("w3814")
    assert len(annotator_table(many[:20]).splitlines()) == 21


def test_the_course_of_a_run() -> None:
    rows = [{"step": s, "split": "train", "loss": 0.5 + (s < 11), "acc": 0.5, "margin": None} for s in range(1, 21)]
    rows += [{"step": s, "split": "val", "loss": s, "acc": 0.25, "margin": 1} for s in (5, 10, 20)]
    table = [re.split(r"\s{2,}", line.strip()) for line in course_table(rows).splitlines()]
    assert table == [
        ["loss", "accuracy", "margin"],
        ["train, step 1", "1.5000", "0.5000", "–"],
        ["train, mean of steps 11 to 20", "0.5000", "0.5000", "–"],
        ["validation, step 5", "5.0000", "0.2500", "1.0000"],
        ["validation, step 20", "20.0000", "0.2500", "1.0000"],
    ]
    assert len(course_table(rows[:22]).splitlines()) == 5 and len(course_table(rows[:21]).splitlines()) == 4
    text = final_report([AnnotatorRow("a", 1, 0.5, 0.9, 0.1, 0.5)], rows, ["run/metrics.jsonl"])
    assert text.startswith("Annotators (1), by reliability η\n") and text.endswith("Files written\n  run/metrics.jsonl")
    assert final_report([], [], []) == ""


def test_the_course_of_named_validation_sets_and_of_skipped_steps() -> None:
    rows = [{"step": s, "split": "train", "loss": 1.0, "skipped": float(s > 2)} for s in range(1, 5)]
    rows += [{"step": 4, "split": f"val/{name}", "loss": loss} for name, loss in (("chat", 2.0), ("code", 3.0))]
    table = [re.split(r"\s{2,}", line.strip()) for line in course_table(rows).splitlines()]
    assert [row[:2] for row in table[3:5]] == [
        ["validation chat, step 4", "2.0000"],
        ["validation code, step 4", "3.0000"],
    ]
    assert table[5] == ["2 of 4 steps were skipped: their gradient was NaN or infinite"]


def test_tensorboard_holds_the_curves_of_the_resumed_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'nemo-rpo[logging]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = RunConfig()
    cfg.exp_manager.create_tensorboard_logger = True
    with RunLog(cfg, tmp_path, 12) as log:
        train(log, 1, 10)
    with RunLog(cfg, tmp_path, 12, resume_step=6) as log:
        train(log, 7, 12)
        assert log.files == [tmp_path / "metrics.jsonl", tmp_path / "tensorboard"]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("val/acc")] == [4, 8, 12]
    assert events.Scalars("train/loss")[0].value == pytest.approx(1 / 3)


def test_wandb_offline(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="pip install 'nemo-rpo[logging]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = RunConfig()
    cfg.exp_manager.create_wandb_logger = True
    cfg.exp_manager.wandb_logger_kwargs = {"project": "p"}
    with RunLog(cfg, tmp_path, 4) as log:
        train(log, 1, 2)
    run_id = (tmp_path / "wandb_id").read_text()
    with RunLog(cfg, tmp_path, 4, resume_step=2) as log:
        train(log, 3, 4)
    runs = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}"))
    assert runs and (tmp_path / "wandb_id").read_text() == run_id
    cfg.exp_manager.wandb_logger_kwargs = {"projct": "p"}
    with pytest.raises(ConfigError, match=r"exp_manager\.wandb_logger_kwargs: .*projct"):
        WandbWriter(cfg, tmp_path)


@pytest.mark.parametrize(
    ("module", "build", "message"),
    [
        ("torch.utils.tensorboard", TensorBoardWriter, "tensorboard is not installed; run: pip install {logging}"),
        ("wandb", partial(WandbWriter, RunConfig()), "wandb is not installed; run: pip install {logging}"),
        ("tqdm", lambda _: Progress(1, stream=Terminal()), "tqdm is not installed; run: pip install {mcore}"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch, module, build, message) -> None:
    message = message.format(logging="'nemo-rpo[logging]'", mcore="'nemo-rpo[mcore]'")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as caught:
        build(tmp_path)
    assert str(caught.value) == message


def test_what_exp_manager_asks_for_without_nemo(tmp_path: Path) -> None:
    """The keys of NeMo's that need NeMo say so; the others do what they do there."""
    pytest.importorskip("tensorboard", reason="pip install 'nemo-rpo[logging]'")
    (tmp_path / "note.txt").write_text("for the record")
    cfg = RunConfig()
    manager = cfg.exp_manager
    manager.files_to_copy = [str(tmp_path / "note.txt")]
    manager.create_tensorboard_logger, manager.summary_writer_kwargs = True, {"filename_suffix": ".mine"}
    (tmp_path / "run").mkdir()
    for writer in metric_writers(cfg, tmp_path / "run"):
        writer.close()
    assert (tmp_path / "run" / "note.txt").read_text() == "for the record"
    assert [path.suffix for path in (tmp_path / "run" / "tensorboard").iterdir()] == [".mine"]
    manager.summary_writer_kwargs = {"colour": "red"}
    with pytest.raises(ConfigError, match=r"exp_manager\.summary_writer_kwargs: .*colour"):
        metric_writers(cfg, tmp_path / "run")
    manager.summary_writer_kwargs, manager.files_to_copy = {}, [str(tmp_path / "absent.txt")]
    with pytest.raises(ConfigError, match=r"exp_manager\.files_to_copy: .*absent\.txt"):
        metric_writers(cfg, tmp_path / "run")
    manager.create_mlflow_logger = True
    with pytest.raises(MissingExtraError, match=r"exp_manager\.create_mlflow_logger.*'nemo-rpo\[nemo\]'"):
        metric_writers(cfg, tmp_path / "run")


def test_a_version_is_a_folder_below_the_name() -> None:
    cfg = RunConfig()
    cfg.exp_manager.exp_dir, cfg.exp_manager.name = "results", "gpt_rpo"
    assert run_folder(cfg) == Path("results/gpt_rpo")
    cfg.exp_manager.version = "second"
    assert run_folder(cfg) == Path("results/gpt_rpo/second")
