"""A pytest plugin, ``-p cpu_seconds``: the CPU seconds of every test file and folder, with those of its ranks.

Wall-clock seconds say little on a machine that others use too. Counted are user and system time of the pytest process,
of its children that have ended, and of the ranks that :mod:`rank_pool` has forked; not what is imported to collect.
"""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePath

import pytest

of_forks = 0.0  # CPU seconds of processes that are nobody's children here; whoever has them run adds to it
_NAME = "cpu_seconds"
_BEFORE = pytest.StashKey[tuple[float, float]]()


def _spent() -> float:
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return of_forks + sum(usage.ru_utime + usage.ru_stime for usage in found)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[_BEFORE] = _spent(), time.monotonic()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    result = yield
    cpu, wall = item.stash[_BEFORE]
    item.user_properties.append((_NAME, (_spent() - cpu, time.monotonic() - wall)))  # xdist brings it to the terminal
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "teardown":
            file = report.nodeid.partition("::")[0]
            for name, (cpu, wall) in report.user_properties:
                for place in (file, *map(str, PurePath(file).parents[:-1])) if name == _NAME else ():
                    spent[place] = [sum(pair) for pair in zip(spent[place], (cpu, wall, 1), strict=True)]
    terminalreporter.section("CPU seconds, seconds, tests")
    for place, (cpu, wall, tests) in sorted(spent.items(), key=lambda row: -row[1][0]):
        terminalreporter.write_line(f"{cpu:8.1f} {wall:8.1f} {tests:5d}  {place}")
