"""Which optimizer steps there are and what happens after each: pure arithmetic, so that a resumed run agrees."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_rpo.config.schema import DPOTrainerConfig
from nemo_rpo.errors import ConfigError


def batches_of(setting: int | float, available: int) -> int:
    """A float is a share of ``available`` batches (at least one, unless it is 0), a whole number counts them."""
    count = setting if isinstance(setting, int) else max(round(setting * available), 1 if setting else 0)
    return min(count, available)


@dataclass(frozen=True)
class Schedule:
    """The course of a run, in optimizer steps counted from 1.

    Attributes:
        data_steps_per_epoch: global batches that the data has.
        steps_per_epoch: those that ``trainer.dpo.limit_train_batches`` lets through.
        total_steps: of the whole run.
        val_every, save_every: 0 for never (a run is saved at its end in any case).
    """

    data_steps_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    val_every: int
    save_every: int

    @classmethod
    def of(cls, settings: DPOTrainerConfig, data_steps_per_epoch: int) -> Schedule:
        """Raises :class:`ConfigError` for a run without a step."""
        steps = batches_of(settings.limit_train_batches, data_steps_per_epoch)
        if steps == 0:
            raise ConfigError("trainer.dpo.limit_train_batches=0 trains nothing: give a share or a number of batches")
        total = settings.max_epochs * steps
        if settings.max_steps > 0:
            total = min(total, settings.max_steps)
        return cls(
            data_steps_per_epoch, steps, total, batches_of(settings.val_check_interval, steps), settings.save_interval
        )

    def data_step(self, step: int) -> int:
        """The sampler's number of the global batch that optimizer step ``step`` trains on."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        return epoch * self.data_steps_per_epoch + position

    def epoch(self, step: int) -> int:
        """Epochs finished after ``step``, as a whole number counted from 0 during the first one."""
        return (step - 1) // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether ``step`` is the last of an epoch."""
        return step % self.steps_per_epoch == 0

    def validates(self, step: int) -> bool:
        """Whether the run validates after ``step``."""
        return self.val_every > 0 and (step % self.val_every == 0 or step == self.total_steps)

    def saves(self, step: int) -> bool:
        """Whether the run saves after ``step``."""
        return step == self.total_steps or (self.save_every > 0 and step % self.save_every == 0)
