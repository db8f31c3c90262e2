"""What a run knows of its annotators: η as it was fitted last, how sure that is, and what was wrong with it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.em import Evidence, RecordedReliability, warn_all
from nemo_rpo.em.fit.temperature import Temperature
from nemo_rpo.em.label_model.of_run.run_label_model import FROM_DEPENDENCE
from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
from nemo_rpo.training.logs.run_log import RunLog
from nemo_rpo.training.outputs import record
from nemo_rpo.training.outputs.results import (
    ANNOTATOR_CSV,
    LABEL_MODEL_JSON,
    write_annotators,
    write_label_model,
)
from nemo_rpo.training.outputs.summary import AnnotatorRow
from nemo_rpo.training.outputs.tastes import GroupsSeen
from nemo_rpo.training.process.rank0 import on_first_rank
from nemo_rpo.training.sweep import sweep_reliabilities

_MOST_PAIRS = 0.9


class AnnotatorBook:
    """The annotators of a run in step with its model; every rank keeps the same book.

    Attributes:
        running_eta: η [K] before the last sweep replaced it.
        standard_error: of η [K], from the last sweep or refit, or as it was believed; nan where neither is known.
        coefficients: by feature of the label model in force, coefficients and their standard errors [K]; empty without.
        choice: what the label model's last choice rested on, for :data:`LABEL_MODEL_JSON`; empty before one.
    """

    def __init__(self, model: MegatronGPTRPOModel, cache: PreferenceCache, folder: Path, log: RunLog) -> None:
        self.model, self.cache, self.folder, self.log = model, cache, folder, log
        self.enabled, self.groups = model.cfg.model.rpo.enabled, model.loss.groups
        self.running_eta = model.em.eta
        self.believed = model.cfg.model.rpo.believe_from is not None
        self.standard_error = model.em.belief.standard_error
        self.coefficients: dict[str, list[list[float]]] = {}
        self._noted = model.em.estimate
        self.choice: dict[str, Any] = {}
        self._said: set[str] = set()
        self._written: int | None = None

    def metrics(self) -> dict[str, float]:
        """Mean and least reliability now; without the EM there are none."""
        if not self.enabled:
            return {}
        mean, least = torch.stack((self.model.em.eta.mean(), self.model.em.eta.min())).tolist()
        shares = self.model.em.share.tolist() if self.groups > 1 else []
        return {
            "em/eta_mean": mean,
            "em/eta_min": least,
            **{f"em/share_of_group_{g}": share for g, share in enumerate(shares, start=1)},
        }

    def note_refit(self, step: int) -> None:
        """Logs the refit that step's commit made, if it made one; guards speak once nearly all pairs have been seen,
        since a policy that has learnt nothing yet is none that learns nothing. Collectives: those of ``em.findings()``
        and ``em.seen_share()``.
        """
        fit = self.model.em.estimate
        if fit is self._noted:
            return
        self._noted = fit
        self.running_eta = self.model.em.eta
        temperature = fit.temperature
        self.log.record(
            "refit",
            step,
            {
                "em/information": fit.information,
                **({"em/temperature": temperature.value} if math.isfinite(temperature.value) else {}),
                "em/temperature_identified": float(temperature.identified),
                "em/voice_weight": self.model.em.voice.weight.item(),
                **({} if math.isnan(temperature.gain) else {"em/voice_gain": temperature.gain}),
                "em/prior_right": fit.prior[0],
                "em/prior_wrong": fit.prior[1],
                **self.metrics(),
            },
        )
        if temperature.reason:
            self._say("temperature", f"the policy weighs {temperature.weight:g} in the E-step: {temperature.reason}")
        self._say_choice()
        found = self.model.em.findings()
        if found is not None:
            self._take(found[0])
        if self.model.em.seen_share() >= _MOST_PAIRS:
            counts = torch.tensor([a.labels for a in self.cache.annotators.annotators]).to(self.model.em.eta)
            self._judge(None if found is None else found[1], counts, temperature)

    def sweep(self, step: int, batches: Iterable[Batch]) -> None:
        """The exact full-batch EM at the present weights over ``batches``; its η replaces the running one.

        Collectives: those of :func:`sweep_reliabilities`.
        """
        self.running_eta = self.model.em.eta
        found = sweep_reliabilities(self.model, batches)
        metrics = {
            "em/log_posterior": float(found.result.log_likelihood),
            "em/iterations": found.result.iterations,
            "em/converged": float(found.result.converged),
            "em/eta_moved": (found.result.eta - self.running_eta).abs().mean().item(),
        }
        self.log.record("sweep", step, {**metrics, **self.metrics()})
        self._say_choice()
        self._take(found.standard_error)
        fit = self.model.em.estimate
        self._judge(found.evidence, found.result.counts, None if fit is None else fit.temperature)

    def look_back(self) -> None:
        """At the end of a run, for :data:`LABEL_MODEL_JSON`: estimates side by side on gold labels, and who changed
        with time. The collective of ``em.look_back()``.
        """
        found = self.model.em.look_back() if self.enabled else None
        if found is None:
            return
        if found.judged:
            self.choice["judged"] = {name: of._asdict() for name, of in found.judged.items()}
        if found.drift is not None:
            self.choice["drift"] = found.drift.to_dict([self.cache.annotators.ids[k] for k in found.annotators])

    def _take(self, standard_error: Tensor) -> None:
        if not self.model.em.settings.freeze_eta:  # else it is what it was known to
            self.standard_error = standard_error
        self.coefficients = {name: [of.tolist() for of in pair] for name, pair in self.model.em.coefficients.items()}

    def _judge(self, evidence: Evidence | None, counts: Tensor, temperature: Temperature | None) -> None:
        em = self.model.em
        start = em.belief.start if self.believed else em.settings.eta_init
        for guard, text in warn_all(em.eta, counts, start, evidence, self.standard_error, temperature):
            if guard != "stuck_at_start" or not em.settings.freeze_eta:
                self._say(guard, f"warning: {text}")

    def _say_choice(self) -> None:
        """What the label model's choice of features rested on, whenever it is another; and its warnings."""
        label_model = self.model.em.label_model
        if label_model is None or label_model.now is None:
            return
        found = {
            "reasons": label_model.reasons or self.choice.get("reasons", []),
            "warnings": [warned._asdict() for warned in label_model.warnings] or self.choice.get("warnings", []),
            "families": [[self.cache.annotators.ids[k] for k in of] for of in label_model.families]
            or self.choice.get("families", []),
        }
        if found["reasons"] and found["reasons"] != self.choice.get("reasons"):
            self.log.note(f"label model: {'; '.join(found['reasons'])}")
        now = label_model.now
        self.choice = self.choice | {
            "features": list(now.names),
            "temperature": now.temperature,
            "majority": len(now.grid) > 0,
            **found,
        }
        for guard, text in label_model.warnings:
            named = ", ".join(map(str, found["families"][:3])) if guard in FROM_DEPENDENCE else ""
            self._say(guard, f"warning: {text}{named and f'; families: {named}'}")

    def _say(self, subject: str, text: str) -> None:
        """Once a run: the figures in a warning change from fit to fit, its meaning does not."""
        if subject not in self._said:
            self._said.add(subject)
            self.log.note(text)

    def state(self) -> dict[str, Any]:
        """For ``run.json``; :meth:`take_up` reads it."""
        errors = [None if math.isnan(error) else error for error in self.standard_error.tolist()]
        return {
            "running_eta": self.running_eta.tolist(),
            "standard_error": errors,
            "coefficients": self.coefficients,
            "label_model": self.choice,
        }

    def take_up(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state`. Annotators who have joined since have η as their running η, and nan as its error."""
        for name in ("running_eta", "standard_error"):
            saved = [math.nan if value is None else value for value in state[name]]
            kept = torch.tensor(saved, dtype=torch.float64, device=self.model.device)
            fresh = self.model.em.eta if name == "running_eta" else self.standard_error
            setattr(self, name, torch.cat((kept, fresh[len(kept) :])))
        self.coefficients, self.choice = state.get("coefficients", {}), state.get("label_model", {})
        self._noted = self.model.em.estimate

    def write(self, step: int) -> list[Path]:
        """Writes ``annotators.csv``, ``label_model.json`` once one was chosen, and, where a record is kept,
        ``annotators.parquet`` and ``posteriors.parquet``, on global rank 0, as they stand after ``step``; returns their
        paths. Once a step: the end of a run has them from its last checkpoint.

        Collectives: :meth:`RecordedReliability.seen`, where they are written.

        Raises:
            CheckpointError: on every rank; they cannot be written.
        """
        em, paths = self.model.em, [self.folder / ANNOTATOR_CSV]
        if self.choice:
            paths.append(self.folder / LABEL_MODEL_JSON)
        recorded = isinstance(em, RecordedReliability)
        if recorded:
            paths += [self.folder / record.ANNOTATORS, self.folder / record.POSTERIORS]
        if step != self._written:
            seen = em.seen().cpu().numpy() if recorded else None
            groups = GroupsSeen.of(em) if recorded and self.groups > 1 else None
            on_first_rank(partial(self._write, step, seen, groups))
            self._written = step
        return paths

    def _write(self, step: int, seen: np.ndarray | None, groups: GroupsSeen | None) -> None:
        em, rows = self.model.em, self.rows()
        write_annotators(self.folder, rows)
        if self.choice:
            write_label_model(self.folder, self.choice)
        self.log.annotators(step, rows)
        if seen is not None:
            record.write_annotators(self.folder, step, rows, em.trajectory)
            logit_eta = torch.logit(em.eta).cpu().numpy()
            evidence = None if em.pair_evidence is None else em.pair_evidence.double().cpu().numpy()
            tau: float | np.ndarray = em.voice.temperature()
            if groups is None:  # as the E-step hears margins that it was trained on
                several = np.bincount(self.cache.all_votes()[0], minlength=len(self.cache)) > 1
                tau = np.where(several, tau / em.voice.trained().item(), tau)
            record.write_posteriors(self.folder, step, self.cache, seen, logit_eta, tau, evidence, groups)

    def rows(self) -> list[AnnotatorRow]:
        """One an annotator, in the data's order."""
        columns = (self.model.em.eta.tolist(), self.standard_error.tolist(), self.running_eta.tolist())
        start, carried = self.model.em.belief.start.tolist(), self.model.em.belief.known.sum(0).tolist()
        weights = map(tuple, self.model.em.weight.tolist()) if self.groups > 1 else [()] * len(columns[0])
        known = {name: list(zip(*pair, strict=True)) for name, pair in self.coefficients.items()}
        people = zip(self.cache.annotators.annotators, *columns, weights, strict=True)
        return [
            AnnotatorRow(
                a.id,
                a.labels,
                eta,
                start[k],
                error,
                running,
                {n: of[k] for n, of in known.items()},
                of_groups,
                carried[k],
            )
            for k, (a, eta, error, running, of_groups) in enumerate(people)
        ]
