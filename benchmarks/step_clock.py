"""The time of steps, by the wall and by the processor, and what it went into."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

# A part of an operator's name → what it is.
KINDS = {"mm": "matrix products", "linear_pointwise": "matrix products", "scaled_dot_product": "attention"}
REST = "the rest"


class StepClock:
    """Noted at the end of each step; a step lasts from the end of the one before, so the first is left out.

    Processor time is that of all threads of the process. On one thread it is what the wall would show on an idle
    machine; on several it counts the waiting of one for another too.

    With ``operators`` torch's profiler runs along, and slows small operations down.
    """

    def __init__(self, operators: bool = False) -> None:
        self._ends: list[tuple[float, float]] = []
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) if operators else None

    def end_of_step(self) -> None:
        if self._profile is not None and not self._ends:
            self._profile.start()
        self._ends.append((time.perf_counter(), time.process_time()))

    def figures(self) -> dict[str, Any]:
        """``wall`` and ``cpu`` seconds of each step; ``operators``: those a step in each of ``KINDS`` and the rest."""
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(self._ends)]
        found: dict[str, Any] = {"wall": [wall for wall, _ in steps], "cpu": [cpu for _, cpu in steps]}
        if self._profile is not None:
            self._profile.stop()
            found["operators"] = dict.fromkeys([*KINDS.values(), REST], 0.0)
            for event in self._profile.key_averages():
                kind = next((KINDS[part] for part in KINDS if part in event.key), REST)
                found["operators"][kind] += event.self_cpu_time_total / 1e6 / len(steps)
        return found


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
