"""Whatever is wrong with a run's folder: one line, status 2, nothing written."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the report needs matplotlib: pip install 'nemo-rpo[report]'")
pytest.importorskip("pyarrow", reason="the report needs pyarrow: pip install 'nemo-rpo[report]'")

from nemo_rpo.cli import main

from .runs import make_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "run"
    make_run(folder, [0.9, 0.8, 0.3], pairs=40)
    return folder


def empty(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(b"")


def cut(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: len(content) // 2])

    return damage


def gone(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


DAMAGE = {
    "no such folder": (shutil.rmtree, "is not the folder of a run"),
    "another folder": (gone("config.yaml"), "is not the folder of a run"),
    "bad configuration": (lambda run: (run / "config.yaml").write_text("model: {lerning_rate: 1}"), "lerning_rate"),
    "no step": (gone("metrics.jsonl"), "has not taken a step"),
    "empty metrics": (empty("metrics.jsonl"), "is empty"),
    "no record": (gone("posteriors.parquet"), "posteriors.parquet does not exist"),
    "empty posteriors": (empty("posteriors.parquet"), "posteriors.parquet is empty"),
    "truncated posteriors": (cut("posteriors.parquet"), "no Parquet file, or a truncated one"),
    "truncated annotators": (cut("annotators.parquet"), "no Parquet file, or a truncated one"),
    "truncated validation": (cut("validation.parquet"), "no Parquet file, or a truncated one"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage(whole: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    damage, expected = DAMAGE[case]
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    damage(run)
    check(run, expected, tmp_path, capsys)


def test_a_run_under_way(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with (run / ".lock").open("w+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 12 on somewhere\n")
        lock.flush()
        check(run, "is still being written (process 12 on somewhere)", tmp_path, capsys)


def check(run: Path, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: ") and expected in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_options(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("name,team\nw0000,a\n")
    for options, expected in (
        (["--groups", str(groups)], "needs the columns annotator and group"),
        (["--groups", str(tmp_path / "none.csv")], "cannot be read"),
        (["--data", str(tmp_path / "none.jsonl")], "does not exist"),
        (["--data", str(whole.with_name("run.train.jsonl")), "--quotes", "-1"], "--quotes must be 0 or more"),
        (["--out", str(tmp_path / "a/b")], "does not exist; make it"),
    ):
        assert main(["report", str(whole), "--out", str(tmp_path / "out"), *options]) == 2
        assert expected in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_data_that_is_not_the_runs(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = whole.with_name("run.train.jsonl").read_text().splitlines()
    other = tmp_path / "other.jsonl"
    for changed in (lines[1:], [line.replace("w0000", "w0009") for line in lines]):
        other.write_text("\n".join(changed))
        assert main(["report", str(whole), "--out", str(tmp_path / "out"), "--data", str(other)]) == 2
        assert "is not what" in capsys.readouterr().err


def test_help_shows_an_example(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", "--help"])
    assert ended.value.code == 0 and "nemo-rpo report results/" in capsys.readouterr().out
