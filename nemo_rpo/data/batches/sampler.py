"""Which pairs make each global batch: a pure function of the seed and the step, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nemo_rpo.errors import ConfigError, DataError

PADDING = -1  # the index of a row that fills up the last batch of an evaluation


class GlobalBatchSampler:
    """Pair indices of every global batch.

    There is no state to save: step s of a run is step s of any run with the same data, batch size and seed, so resuming
    is arithmetic and a checkpoint holds ``consumed_samples`` only to say where it stands.

    Args:
        num_pairs: pairs in the data, n.
        global_batch_size: pairs an optimizer step.
        seed: of the order.
        shuffle: a new permutation each epoch; off: file order (evaluation).
        drop_last: leave out the pairs of an epoch that do not fill a batch. Off: the last batch is filled up with
            :data:`PADDING` rows, which :func:`nemo_rpo.data.batches.padded.collate` marks invalid.
        consumed_samples: pairs already trained on, where iteration starts.

    Raises:
        DataError: not one batch in the data.
        ConfigError: ``consumed_samples`` is no whole number of batches.
    """

    def __init__(
        self,
        num_pairs: int,
        global_batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        consumed_samples: int = 0,
    ) -> None:
        if global_batch_size < 1:
            raise ConfigError(f"model.global_batch_size is {global_batch_size}; it must be at least 1")
        if num_pairs < 1 or (drop_last and num_pairs < global_batch_size):
            raise DataError(
                f"the data has {num_pairs} pairs, fewer than one global batch; "
                f"lower model.global_batch_size (now {global_batch_size}) or add data"
            )
        if consumed_samples % global_batch_size:
            raise ConfigError(
                f"the run stands at {consumed_samples} consumed pairs, no multiple of model.global_batch_size "
                f"{global_batch_size}; resume with the batch size it was trained with"
            )
        self.num_pairs = num_pairs
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.steps_per_epoch = num_pairs // global_batch_size if drop_last else -(-num_pairs // global_batch_size)
        self.start_step = consumed_samples // global_batch_size
        self._order: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> np.ndarray:
        """Indices of the pairs of global batch ``step``, counted from the run's start: int64 [global_batch_size]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch_size
        indices = self._epoch_order(epoch)[start : start + self.global_batch_size]
        filling = np.full(self.global_batch_size - len(indices), PADDING, dtype=np.int64)
        return np.concatenate([indices, filling])

    def __iter__(self) -> Iterator[np.ndarray]:
        """The batches from ``consumed_samples`` on, epoch after epoch, without end."""
        step = self.start_step
        while True:
            yield self.batch(step)
            step += 1

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_pairs, dtype=np.int64)
        order = self._order  # a local: the prefetch thread and the trainer may stand in different epochs
        if order is None or order[0] != epoch:
            # NumPy keeps the raw stream of a bit generator fixed between releases, but not what Generator.permutation
            # makes of it; sorting the raw numbers resumes in the same order under any version.
            raw = np.random.PCG64([self.seed, epoch]).random_raw(self.num_pairs)
            self._order = order = epoch, np.argsort(raw, kind="stable").astype(np.int64)
        return order[1]


def shard(
    batch: np.ndarray, data_parallel_rank: int, data_parallel_size: int, micro_batch_size: int
) -> list[np.ndarray]:
    """The micro-batches of one data-parallel rank, int64 [micro_batch_size] each.

    Micro-batch m of all ranks together is the m-th run of ``data_parallel_size × micro_batch_size`` pairs; the ranks'
    shares are disjoint and make up the whole batch.

    Raises:
        ConfigError: the batch does not divide.
    """
    across = data_parallel_size * micro_batch_size
    if len(batch) % across:
        raise ConfigError(
            f"model.global_batch_size {len(batch)} is not divisible by model.micro_batch_size {micro_batch_size} × "
            f"data-parallel size {data_parallel_size}"
        )
    return list(batch.reshape(-1, data_parallel_size, micro_batch_size)[:, data_parallel_rank])
