"""What an estimator saw of every pair, and the way its reliabilities went: kept beside it, for people to read.

Shapes: n pairs of the data, K annotators, P pairs of a micro-batch, R of a global batch, T points of the trajectory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.em.buffer import MarginBuffer
from nemo_rpo.em.collectives import Collectives
from nemo_rpo.em.reliability import AnnotatorReliability
from nemo_rpo.em.votes import Votes

# Enough to draw a curve from; fewer where so many would not fit beside a model of a crowd of millions.
_POINTS, _FEWEST_POINTS, _VALUES = 128, 8, 1 << 22
_TRAJECTORY = "trajectory."


class PairRecord:
    """Of every pair the margin Δ and the posterior w at first sight, and Δ at last sight: 12 bytes a pair, in blocks
    over the data-parallel ranks as :class:`nemo_rpo.em.buffer.MarginBuffer` has them; NaN where a pair was not seen.
    """

    def __init__(self, num_pairs: int, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu") -> None:
        self._columns = [MarginBuffer(num_pairs, rank, world_size, device) for _ in range(3)]
        self.num_pairs = num_pairs

    def see(self, pair: Tensor, delta: Tensor, w: Tensor) -> None:
        """A global batch: index in the data int64 [R] (-1: left out), margins and posteriors float32 [R]."""
        first_delta, first_w, last_delta = self._columns
        first_delta.record(pair, delta, keep_first=True)
        first_w.record(pair, w, keep_first=True)
        last_delta.record(pair, delta, keep_first=False)

    def see_again(self, delta: Tensor) -> None:
        """The margins [n] of all pairs at the present weights, as a sweep has them."""
        self._columns[2].load(delta)

    def forget(self) -> None:
        """Empties the record: no pair has been seen."""
        for column in self._columns:
            column.margins.fill_(float("nan"))

    def state(self) -> Tensor:
        """float32 [block, 3]: first Δ, first w, last Δ of this rank's pairs."""
        return torch.stack([column.margins for column in self._columns], -1)

    def blocks(self) -> dict[str, MarginBuffer]:
        """The columns by name."""
        return dict(zip(("first_delta", "first_w", "last_delta"), self._columns, strict=True))


class Trajectory:
    """η of all annotators at up to 128 steps of a run, evenly spread however long it gets.

    When there is no room for another point every second one is dropped, and from then on only every second one is
    taken. What is kept depends on the steps alone, so a resumed run keeps the same.

    Attributes:
        steps: [T], rising.
        eta: float32 [K] at each of them.
    """

    def __init__(self, num_annotators: int) -> None:
        self.capacity = min(_POINTS, max(_FEWEST_POINTS, _VALUES // num_annotators))
        self.steps: list[int] = []
        self.eta: list[Tensor] = []
        self._every = 1

    def pass_by(self, step: int, eta: Tensor) -> None:
        """η after ``step``; kept if its turn has come."""
        if (step - 1) % self._every == 0:
            self.keep(step, eta)

    def keep(self, step: int, eta: Tensor) -> None:
        """η after ``step``, replacing an earlier entry of the same step."""
        if self.steps and self.steps[-1] == step:
            self.steps.pop(), self.eta.pop()
        if len(self.steps) == self.capacity:
            self.steps, self.eta = self.steps[::2], self.eta[::2]
            self._every *= 2
        self.steps.append(step)
        self.eta.append(eta.float())

    def state(self) -> dict[str, Tensor]:
        """By name: ``steps`` int64 [T], ``eta`` float32 [T, K], and ``every`` int64 [1]; without points ``every``."""
        state = {"every": torch.tensor([self._every])}
        return state | {"steps": torch.tensor(self.steps), "eta": torch.stack(self.eta)} if self.steps else state

    def load(self, state: dict[str, Tensor], like: Tensor) -> None:
        """Restores :meth:`state`; of annotators that ``like`` [K] has beyond it, the way begins later (NaN)."""
        self._every = int(state["every"])
        self.steps = state["steps"].tolist() if "steps" in state else []
        newcomers = torch.full_like(like, float("nan"), dtype=torch.float32)
        ways = state["eta"].unbind() if "steps" in state else []
        self.eta = [torch.cat((eta.to(newcomers), newcomers[len(eta) :])) for eta in ways]


class RecordedReliability:
    """Stands in for the estimator ``em`` and keeps a record of what passes through it; η is what ``em`` makes it.

    Nothing here waits for the device. A step costs one gather of 16 bytes a pair (:meth:`exchange`).

    Attributes:
        em: :class:`AnnotatorReliability` or one like it; whatever is not said here is its own.
        pairs: what was seen of each pair.
        trajectory: the way of η.
    """

    def __init__(self, em: AnnotatorReliability, pairs: PairRecord, collectives: Collectives | None = None) -> None:
        self.em, self.pairs, self.trajectory = em, pairs, Trajectory(em.num_annotators)
        self.collectives = collectives or Collectives()
        self._posteriors: list[Tensor] = []
        self._rows: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.em, name)

    def accumulate(self, w: Tensor, votes: Votes, valid: Tensor) -> None:
        """Notes the posteriors [P] of the micro-batch that :meth:`observe` names next."""
        self.em.accumulate(w, votes, valid)
        self._posteriors.append(w.float())

    @torch.no_grad()
    def observe(self, pair: Tensor, delta: Tensor, valid: Tensor) -> None:
        """Notes which pairs [P] the posteriors noted last belong to, and their margins [P]."""
        self.em.observe(pair, delta, valid)
        [w] = self._posteriors
        self._posteriors = []
        index = torch.where(valid & delta.isfinite(), pair, -1).long().unsqueeze(-1).view(torch.int32)
        self._rows.append(torch.cat((index, torch.stack((delta.float(), w), -1).view(torch.int32)), -1))

    def exchange(self, gather_rows: Callable[[Tensor], Tensor]) -> None:
        """As :meth:`AnnotatorReliability.exchange`; brings this step's rows to every rank: int32 [r, 4] -> [R, 4].

        The margin buffer's rows are the first three columns of the record's: they travel once. An estimator of groups
        has rows of its own.
        """
        empty = torch.empty(0, 4, dtype=torch.int32, device=self.em.eta.device)
        rows = gather_rows(torch.cat((empty, *self._rows)))
        self.em.exchange(lambda own: rows[:, :3] if own.shape[1] == 3 else gather_rows(own))
        self._rows = [rows]

    @torch.no_grad()
    def commit(self) -> None:
        """As the estimator's; the record takes the step's rows with it."""
        for rows in self._rows:
            index, seen = rows[:, :2].reshape(-1).view(torch.int64), rows[:, 2:].contiguous().view(torch.float32)
            self.pairs.see(index, *seen.unbind(-1))
        self._rows = []
        self.em.commit()
        self.trajectory.pass_by(self.em.step, self.em.eta)

    def settle(self) -> None:
        """As the estimator's; what it makes of η is on the trajectory."""
        self.em.settle()
        self.trajectory.keep(self.em.step, self.em.eta)

    def rollback(self) -> None:
        """As the estimator's; the rows of the step are dropped too."""
        self.em.rollback()
        self._rows, self._posteriors = [], []

    def replace(self, eta: Tensor) -> None:
        """As the estimator's; a sweep is always on the trajectory."""
        self.em.replace(eta)
        self.trajectory.keep(self.em.step, self.em.eta)

    def seen(self) -> Tensor:
        """float32 [n, 3] of all pairs: Δ and w at first sight, Δ at last; NaN where a pair was not seen.

        One gather of 12 bytes a pair over the ranks that hold different pairs.
        """
        return self.collectives.gather_rows(self.pairs.state())

    def shared_state(self) -> dict[str, Tensor]:
        """As the estimator's, and the trajectory's under ``trajectory.<name>``."""
        way = {f"{_TRAJECTORY}{name}": values for name, values in self.trajectory.state().items()}
        return {**self.em.shared_state(), **way}

    def blocks(self) -> dict[str, MarginBuffer]:
        """The estimator's blocks of pairs, and the record's."""
        return {**self.em.blocks(), **self.pairs.blocks()}

    def load_shared_state(self, state: dict[str, Tensor]) -> None:
        """Restores :meth:`shared_state`; one without a record leaves the trajectory as it is."""
        self.em.load_shared_state(state)
        self._rows, self._posteriors = [], []
        way = {name.removeprefix(_TRAJECTORY): of for name, of in state.items() if name.startswith(_TRAJECTORY)}
        if way:
            self.trajectory.load(way, self.em.eta)
