"""The time of steps, by the wall and by the processor."""

from __future__ import annotations

import itertools
import time
from typing import Any


class StepClock:
    """Noted at the end of each step; a step lasts from the end of the one before, so the first is left out.

    Processor time is that of all threads of the process. On one thread it is what the wall would show on an idle
    machine; on several it counts the waiting of one for another too.
    """

    def __init__(self) -> None:
        self._ends: list[tuple[float, float]] = []

    def end_of_step(self) -> None:
        self._ends.append((time.perf_counter(), time.process_time()))

    def figures(self) -> dict[str, list[float]]:
        """``wall`` and ``cpu`` seconds of each step."""
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(self._ends)]
        return {"wall": [wall for wall, _ in steps], "cpu": [cpu for _, cpu in steps]}


class CallClock:
    """Processor time in chosen functions, step by step: finer than what turns a part of a step on and off can show."""

    def __init__(self) -> None:
        self._spent, self._steps = 0.0, []

    def watch(self, owner: Any, name: str) -> None:
        """Times ``owner.name`` from now on; not a function that another watched one calls."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._spent += time.process_time() - start

        setattr(owner, name, timed)

    def end_of_step(self) -> None:
        self._steps.append(self._spent)
        self._spent = 0.0

    def seconds(self) -> list[float]:
        """Of each step but the first, as a :class:`StepClock` has them."""
        return self._steps[1:]
