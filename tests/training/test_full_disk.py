"""A disk without room: one line, nothing half-written, and no step lost for the sake of its figures."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.data.files.write import record_writer, write_csv
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.training.logs.metrics import METRICS_FILE, MetricsWriter, read_metrics
from nemo_rpo.training.logs.run_log import RunLog
from nemo_rpo.training.outputs.results import ANNOTATOR_CSV, write_annotators
from nemo_rpo.training.outputs.summary import AnnotatorRow

LIMIT = 20_000  # bytes that a file may have


@pytest.fixture
def full() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process grow beyond so many bytes, which the kernel answers as it does a full disk's."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_metrics_wait_for_room(tmp_path: Path, full: Callable[[int], None], capsys: pytest.CaptureFixture) -> None:
    """The run goes on, it is said once, no line is half there, and none is lost once there is room again."""
    log = RunLog(RunConfig(), tmp_path, 100)
    full(LIMIT)
    for step in range(1, 101):
        log.train(step, {"loss": 1.0, "text": "x" * 400}, seconds=1, pairs=1, tokens=1)
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert 0 < len(lines) < 50 and all(json.loads(line)["step"] == i for i, line in enumerate(lines, start=1))
    said = [line for line in capsys.readouterr().err.splitlines() if "cannot be written" in line]
    [line] = said
    assert line.startswith(f"warning: {tmp_path / METRICS_FILE} cannot be written (")
    assert line.endswith("): the run goes on without it")
    full(10 * LIMIT)
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 101))


def test_a_disk_that_stays_full_ends_no_run(tmp_path: Path, full: Callable[[int], None]) -> None:
    with RunLog(RunConfig(), tmp_path, 9) as log:
        full(0)
        log.record("val", 1, {"loss": 1.0})
    assert (tmp_path / METRICS_FILE).read_bytes() == b""


def test_cutting_metrics_leaves_them_whole(tmp_path: Path, full: Callable[[int], None]) -> None:
    writer = MetricsWriter(tmp_path)
    for step in range(1, 101):
        writer.write(step, "train", {"text": "x" * 400})
    writer.close()
    before = (tmp_path / METRICS_FILE).read_bytes()
    full(LIMIT)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be written .*; see that its disk has room"):
        MetricsWriter(tmp_path, resume_step=99)
    assert (tmp_path / METRICS_FILE).read_bytes() == before and os.listdir(tmp_path) == [METRICS_FILE]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet", "out"])
def test_records_are_whole_or_absent(tmp_path: Path, full: Callable[[int], None], name: str) -> None:
    full(LIMIT)
    with pytest.raises(ConfigError, match=f"cannot write .*{name} .*; name another place"):
        with record_writer(tmp_path / name) as write:
            for _ in range(200):
                write({"text": os.urandom(200).hex()})
    assert os.listdir(tmp_path) == []


def test_tables_are_whole_or_as_before(tmp_path: Path, full: Callable[[int], None]) -> None:
    (tmp_path / "rows.csv").write_text("before")
    (tmp_path / ANNOTATOR_CSV).write_text("before")
    full(LIMIT)
    with pytest.raises(ConfigError, match=r"rows\.csv cannot be written .*; name another place"):
        write_csv(tmp_path / "rows.csv", [{"text": "x" * 100}] * 1000)
    rows = [AnnotatorRow(f"annotator {i}", 1, 0.5, 0.9, 0.1, 0.5) for i in range(2000)]
    with pytest.raises(CheckpointError, match=r"annotators\.csv cannot be written .*; see that its disk has room"):
        write_annotators(tmp_path, rows)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("rows.csv", ANNOTATOR_CSV), "before"
    )


def test_a_whole_file_of_a_block_that_fails_otherwise(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        with whole_file(tmp_path / "a", ConfigError, "") as writing:
            writing.write_text("half")
            raise KeyError
    assert os.listdir(tmp_path) == []
    with whole_file(tmp_path / "a", ConfigError, "") as writing:
        writing.write_text("all")
    assert (tmp_path / "a").read_text() == "all" and os.listdir(tmp_path) == ["a"]
