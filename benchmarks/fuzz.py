"""Damaged inputs for everything that reads a file: no traceback, no hang, the right exit status, nothing half-written.

    python benchmarks/fuzz.py --cases 4000 [--seed 0] [--only convert]

A case is a seed: which input, how it is damaged, and what reads it. The table counts, by what was read, how many were
taken, refused in one line, and wrong; each wrong one is printed with its seed, and ``--seed S --cases 1`` is that case
alone. The commands run in this process, through the command line's own ``main``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests/data"), str(HERE.parent / "tests/report")]

from fuzzing.checkpoints import CHECKPOINTS, make_checkpoints  # noqa: E402
from fuzzing.data import DATA  # noqa: E402
from fuzzing.readers import Outcome, Refused, Target, Wrong  # noqa: E402
from fuzzing.runs import RUNS, make_runs  # noqa: E402

TARGETS = DATA | RUNS | CHECKPOINTS
_HANG = 120  # seconds; the slowest, a report, takes two on an idle machine


class _Hang(BaseException):
    """No ``except Exception`` may swallow it."""


def prepare(folder: Path) -> Path:
    """Inputs that take a while to make, once for all cases."""
    make_runs(folder)
    make_checkpoints(folder)
    return folder


def run_case(seed: int, prepared: Path, only: str | None = None) -> tuple[str, str, str]:
    """One case: what was read, ``taken``, ``refused`` or ``WRONG``, and what was wrong."""
    rng = random.Random(seed)
    names = [name for name in TARGETS if only is None or name.startswith(only)]
    name = rng.choices(names, [TARGETS[name].weight for name in names])[0]
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        with _quiet() as said, _in_time():
            outcome = _outcome(TARGETS[name], rng, folder, prepared)
        if outcome.kind == "refused" and len(outcome.said.strip().splitlines()) != 1:
            return name, "WRONG", f"not one line: {outcome.said.strip()[:300]!r}"
        if "Traceback" in said.getvalue():
            return name, "WRONG", said.getvalue()[-800:]
        return name, outcome.kind, outcome.said
    except Wrong as exc:
        return name, "WRONG", str(exc)
    except _Hang:
        return name, "WRONG", f"no end after {_HANG} s"
    except Exception:
        return name, "WRONG", traceback.format_exc(limit=-4)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _outcome(target: Target, rng: random.Random, folder: Path, prepared: Path) -> Outcome:
    try:
        return target.run(rng, folder, prepared)
    except Refused as exc:
        return Outcome("refused", str(exc))


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    said = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def table(counts: Counter[tuple[str, str]], seconds: Counter[str]) -> str:
    """What became of the cases, by what was read."""
    lines = ["| read by | cases | taken | refused | wrong | seconds |", "|---|---:|---:|---:|---:|---:|"]
    for name in sorted({name for name, _ in counts}):
        found = [counts[name, kind] for kind in ("taken", "refused", "WRONG")]
        lines.append(f"| {name} | {sum(found)} | " + " | ".join(map(str, found)) + f" | {seconds[name]:.0f} |")
    totals = [sum(n for (_, kind), n in counts.items() if kind == of) for of in ("taken", "refused", "WRONG")]
    lines.append(f"| all | {sum(totals)} | " + " | ".join(map(str, totals)) + f" | {sum(seconds.values()):.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each has its own")
    parser.add_argument("--only", help="read by what begins like this")
    args = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    seconds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder))
        for seed in range(args.seed, args.seed + args.cases):
            began = time.process_time()
            name, kind, said = run_case(seed, prepared, args.only)
            counts[name, kind] += 1
            seconds[name] += time.process_time() - began
            if kind == "WRONG" or args.cases == 1:
                print(f"--- seed {seed}, {name}, {kind}: {said}", flush=True)
    print(table(counts, seconds))
    return int(any(kind == "WRONG" for _, kind in counts))


if __name__ == "__main__":
    sys.exit(main())
