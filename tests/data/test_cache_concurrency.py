"""Several ranks and jobs at one cache: built once, never half, and nobody waits for the dead."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import filelock
import pytest

from nemo_rpo.data.cache import build
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import DataError

from .conftest import write_jsonl

SPAWN = multiprocessing.get_context("spawn")


def rows(n, last="no"):
    return [{"prompt": f"why {i}?", "chosen": "yes", "rejected": "no"} for i in range(n - 1)] + [
        {"prompt": "why so?", "chosen": "yes", "rejected": last}
    ]


def make_spec(path: Path, tokenizer_folder: Path) -> CacheSpec:
    return CacheSpec(path, RowFormat(), TokenizerSpec(str(tokenizer_folder), False), 64, True, "error")


@pytest.fixture
def spec(tmp_path, tokenizer_folder):
    return make_spec(write_jsonl(tmp_path / "train.jsonl", rows(600)), tokenizer_folder)


def counting_rank(spec, gate, folder, rank):
    """What a rank does at start-up; leaves a file for each build and one for its outcome."""
    original = build.write_cache

    def counted(*args):
        (folder / f"build-{rank}").touch()
        original(*args)

    build.write_cache = counted
    gate.wait(60)
    try:
        cache = open_cache(spec, None, num_workers=0, wait_timeout=60)
        outcome = [str(cache.folder), len(cache), cache.pair(17).chosen_ids.tolist()]
    except DataError as exc:
        outcome = str(exc)
    (folder / f"outcome-{rank}.json").write_text(json.dumps(outcome))


def run_ranks(spec, folder, ranks=4):
    gate = SPAWN.Barrier(ranks)
    started = [SPAWN.Process(target=counting_rank, args=(spec, gate, folder, rank)) for rank in range(ranks)]
    for process in started:
        process.start()
    for process in started:
        process.join(90)
        assert process.exitcode == 0
    return [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in range(ranks)]


def test_four_ranks_at_once_build_once_and_agree(spec, tmp_path):
    outcomes = run_ranks(spec, tmp_path)
    assert len(list(tmp_path.glob("build-*"))) == 1
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert outcomes[0][1] == 600
    left = [path.name for path in Path(outcomes[0][0]).parent.iterdir() if ".lock" not in path.name]
    assert left == [Path(outcomes[0][0]).name]


def test_every_rank_gets_the_same_error_and_none_hangs(tmp_path, tokenizer_folder):
    path = write_jsonl(tmp_path / "train.jsonl", rows(600, last=""))
    outcomes = run_ranks(make_spec(path, tokenizer_folder), tmp_path)
    assert outcomes == [f"{path}:600: empty completion; set model.data.invalid_pairs=drop to leave such pairs out "
                        "(1 of 600 pairs)"] * 4  # fmt: skip
    assert not [p for p in (tmp_path / build.CACHE_FOLDER).iterdir() if p.is_dir()]


def stuck_builder(spec, started, num_workers):
    from nemo_rpo.data.cache import encoder as encode

    encode.SPAWN_FROM = 100

    def progress(*_):
        Path(started).write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))
        time.sleep(600)

    open_cache(spec, None, num_workers=num_workers, wait_timeout=60, progress=progress)


def kill_in_mid_build(spec, started, num_workers):
    builder = SPAWN.Process(target=stuck_builder, args=(spec, started, num_workers))
    builder.start()
    deadline = time.time() + 60
    while not ((started.exists() and started.read_text()) or (num_workers == 0 and started.exists())):
        assert builder.is_alive() and time.time() < deadline
        time.sleep(0.05)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(10)
    return [int(pid) for pid in started.read_text().split()]


def test_a_build_that_is_killed_leaves_no_cache_and_its_lock_is_free(spec, tmp_path):
    kill_in_mid_build(spec, tmp_path / "started", num_workers=0)
    cache_dir = tmp_path / build.CACHE_FOLDER
    (leftover,) = [path for path in cache_dir.iterdir() if path.is_dir()]
    assert ".tmp-" in leftover.name
    cache = open_cache(spec, None, num_workers=0, wait_timeout=5)
    assert len(cache) == 600
    assert [path for path in cache_dir.iterdir() if path.is_dir()] == [cache.folder]


def test_the_workers_of_a_killed_build_do_not_outlive_it(spec, tmp_path):
    workers = kill_in_mid_build(spec, tmp_path / "started", num_workers=2)
    assert workers
    deadline = time.time() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.time() < deadline, "orphaned tokenising processes"
        time.sleep(0.1)


def held_lock(spec):
    """The lock as another process would hold it, and the paths beside it."""
    folder = build.cache_folder(spec, None)
    folder.parent.mkdir(exist_ok=True)
    lock = filelock.FileLock(f"{folder}.lock")
    lock.acquire()
    return lock, folder


def test_waiting_ends_with_an_error_that_names_the_lock(spec):
    lock, folder = held_lock(spec)
    with pytest.raises(DataError, match=rf"waited 0 s for another process .*delete {folder}\.lock"):
        open_cache(spec, None, num_workers=0, wait_timeout=0.3)
    lock.release()


def test_those_who_waited_for_a_failed_build_raise_its_error_and_do_not_try_again(spec, monkeypatch):
    lock, folder = held_lock(spec)
    failure = build._Failure(folder.with_name(f"{folder.name}.failed.json"))
    failure.write("an earlier attempt")
    monkeypatch.setattr(build, "write_cache", lambda *_: pytest.fail("tried again"))
    caught = []

    def wait():
        try:
            open_cache(spec, None, num_workers=0, wait_timeout=30)
        except DataError as exc:
            caught.append(str(exc))

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(1)
    failure.write("data.jsonl:3: bad")
    lock.release()
    waiting.join(30)
    assert caught == ["data.jsonl:3: bad"]


def test_an_old_failure_is_no_reason_to_fail_again(spec):
    folder = build.cache_folder(spec, None)
    folder.parent.mkdir()
    failure = build._Failure(folder.with_name(f"{folder.name}.failed.json"))
    failure.write("the disk was full")
    assert len(open_cache(spec, None, num_workers=0, wait_timeout=5)) == 600
    assert failure.read() is None


def test_the_loser_of_a_race_without_locks_takes_the_winners_cache(spec, monkeypatch, caplog):
    def no_locks(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    original = build.write_cache

    def overtaken(*args):
        original(*args)
        monkeypatch.setattr(build, "write_cache", original)
        overtaken.winner = open_cache(spec, None, num_workers=0, wait_timeout=5)

    monkeypatch.setattr(build, "write_cache", overtaken)
    cache = open_cache(spec, None, num_workers=0, wait_timeout=5)
    assert cache.folder == overtaken.winner.folder
    assert "no file locks" in caplog.text
    assert [path for path in cache.folder.parent.iterdir() if path.is_dir()] == [cache.folder]


def test_a_finished_cache_needs_no_write_access(spec, monkeypatch):
    open_cache(spec, None, num_workers=0, wait_timeout=5)
    monkeypatch.setattr(build, "_build_once", lambda *_: pytest.fail("touched the cache folder"))
    assert len(open_cache(spec, None, num_workers=0, wait_timeout=5)) == 600
