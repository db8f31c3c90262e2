"""Which optimizer steps a learning-rate schedule rises, falls and rests on: arithmetic, known before a run starts."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_rpo.config.schema import SchedConfig
from nemo_rpo.counting import counted


@dataclass(frozen=True)
class RateSchedule:
    """The schedule of a run of ``total`` optimizer steps, which count from 1.

    Step n ≤ ``peak`` runs at lr · n / peak. From there the rate falls, and *would* be ``min_lr`` at step ``end``: the
    first of the ``constant_steps`` at ``min_lr``, and without any the step after the last one. So no step is spent at
    rate 0 unless the settings ask for it, and a run of one step trains at the peak.

    Attributes:
        peak: the step at the full rate, 1 or more.
        end: the first step at ``min_lr``, after ``peak``.
        total: steps of the run.
    """

    peak: int
    end: int
    total: int

    @classmethod
    def of(cls, sched: SchedConfig, total: int) -> RateSchedule:
        """Of the block ``model.optim.sched`` in a run of ``total`` steps.

        >>> RateSchedule.of(SchedConfig(warmup_steps=0), 1)
        RateSchedule(peak=1, end=2, total=1)
        """
        peak = max(sched.warmup_steps, 1)
        return cls(peak, max((sched.max_steps or total) + 1 - sched.constant_steps, peak + 1), total)

    def warnings(self, sched: SchedConfig) -> list[str]:
        """What a run under ``sched`` would hardly be meant to do, one sentence each; empty where all is well."""
        block, found = "model.optim.sched", []
        if self.peak > self.total:
            found.append(
                f"the learning rate never reaches model.optim.lr: {block}.warmup_steps={sched.warmup_steps}, and the "
                f"run has {counted(self.total, 'step')}, the last at {self.total / self.peak:.0%} of it. Lower "
                "warmup_steps"
            )
        elif sched.name != "constant" and self.end == self.peak + 1 <= self.total:
            found.append(
                f"the learning rate leaves model.optim.lr after one step: {block} has warmup_steps={sched.warmup_steps}"
                f" and constant_steps={sched.constant_steps} of {counted(sched.max_steps or self.total, 'step')}. "
                "Lower constant_steps"
            )
        at_zero = self.total + 1 - self.end if sched.min_lr == 0 and sched.name != "constant" else 0
        if at_zero > 0:
            found.append(
                f"the last {counted(at_zero, 'step')} train nothing: {block}.min_lr is 0 there (constant_steps="
                f"{sched.constant_steps}, max_steps={sched.max_steps}, the run has {counted(self.total, 'step')}). Set "
                "min_lr, or lower constant_steps"
            )
        return found
