"""From a run to its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_rpo import __version__
from nemo_rpo.counting import counted
from nemo_rpo.errors import DataError
from nemo_rpo.report import doubtful, policy, reliability, tastes
from nemo_rpo.report.advice import no_better_than_chance, verdict
from nemo_rpo.report.crowd import drivers_of_run
from nemo_rpo.report.disagreement import taste
from nemo_rpo.report.groups import bands, read_groups
from nemo_rpo.report.rendering.document import Document, Note, Section, Text
from nemo_rpo.report.run import Run
from nemo_rpo.report.source import Source
from nemo_rpo.report.texts import Texts, read_texts
from nemo_rpo.report.warnings import warnings_of


@dataclass(frozen=True)
class ReportSettings:
    """What goes into a report.

    Attributes:
        quotes: doubtful labels to quote.
        groups: CSV file with columns ``annotator`` and ``group``; bands of reliability without one.
        data: the training files, where they are no longer where the run read them.
        texts: whether to quote texts at all.
    """

    quotes: int = 20
    groups: Path | None = None
    data: tuple[Path, ...] = ()
    texts: bool = True


def build_report(run: Run, settings: ReportSettings | None = None, beside: Note | None = None) -> Document:
    """The report of ``run``.

    Args:
        beside: what a comparison with the plain loss came to, for the first lines.

    Raises:
        DataError: files named in ``settings`` that cannot be read, or are not of this run.
        MissingExtraError: matplotlib is not installed.
    """
    settings = settings or ReportSettings()
    sections = [Section("In short"), Section("Warnings")]
    if run.labels is None:
        sections[1:] = [policy.section(run, None)]
    else:
        named = bands(run.annotators.eta)
        groups = read_groups(settings.groups, run.annotators.id) if settings.groups else named
        found = taste(run.labels, run.annotators)
        doubted = doubtful.choose(run, settings.quotes)
        texts, missing = _texts(run, settings, np.concatenate((doubted, found.contested[: doubtful.CONTESTED])))
        sections[1].blocks = _warnings(run)
        sections += [
            reliability.annotators_section(run),
            *tastes.sections(run),
            reliability.labels_section(run, groups),
            policy.section(run, groups),
            doubtful.quotes_section(run, doubted, texts, missing),
            doubtful.leanings_section(run, texts),
            *drivers_of_run.sections(run, settings.data if texts is not None else None),
            doubtful.taste_section(run, found, texts),
        ]
    sections[0].blocks = [*verdict(run, beside), Text(" ".join(_in_short(run)))]
    sections.append(_how_to_read(run))
    return Document(f"Whom to believe: {run.cfg.exp_manager.name}", _facts(run), sections)


def _texts(run: Run, settings: ReportSettings, rows: np.ndarray) -> tuple[Texts | None, str]:
    """The texts behind ``rows`` of the labels, or why there are none."""
    if not settings.texts:
        return None, "Texts were left out of this report."
    try:
        return read_texts(run, Source(run, settings.data), rows), ""
    except DataError as exc:
        if settings.data:
            raise
        return None, f"No texts: {exc}."


def _facts(run: Run) -> list[tuple[str, str]]:
    model, data = run.cfg.model, run.cfg.model.data.data_prefix
    loss = model.rpo.base_loss or model.dpo.preference_loss
    files = data.get("train", "")
    facts = [
        ("run", str(run.folder)),
        ("policy", str(run.cfg.pretrained_checkpoint.restore_from_path or "fresh weights")),
        *((what, str(path)) for what, path in _other_rounds(run) if path is not None),
        ("training data", files if isinstance(files, str) else ", ".join(map(str, files))),
        (
            "loss",
            f"re_{loss}, {model.rpo.objective_in_force} objective"
            if model.rpo.enabled
            else f"{loss}, every label believed",
        ),
        ("steps", f"{run.step:,} of {model.global_batch_size:,} pairs each"),
    ]
    if run.labels is not None:
        pairs = len(np.unique(run.labels.pair))
        facts.append(
            (
                "labels",
                f"{len(run.labels):,} of {counted(len(run.annotators), 'annotator')} on {counted(pairs, 'pair')}",
            )
        )
    return [*facts, ("made by", f"nemo-rpo {__version__}")]


def _other_rounds(run: Run) -> list[tuple[str, str | None]]:
    """What a run of a loop takes from others."""
    rpo = run.cfg.model.rpo
    return [
        ("reference", rpo.reference_from),
        ("previous iterate", rpo.previous_iterate),
        ("π₀, the first policy", rpo.first_policy),
        ("reliabilities begin at", rpo.believe_from),
    ]


def _in_short(run: Run) -> list[str]:
    said = []
    if run.labels is not None:
        w = run.labels.w_last[~np.isnan(run.labels.w_last)]
        below = np.flatnonzero((run.annotators.eta < 0.5) & (run.annotators.labels > 0))
        said.append(
            f"The run believes that {(w < 0.5).sum():,} of {len(w):,} labels ({(w < 0.5).mean():.1%}) are wrong, and "
            f"expects {1 - w.mean():.1%} of all labels to be."
        )
        if len(below):
            worst = [run.annotators.id[k] for k in run.annotators.ranked if k in set(below.tolist())]
            share = run.annotators.labels[below].sum() / max(run.annotators.labels.sum(), 1)
            names = ", ".join(worst[:5]) + (", …" if len(worst) > 5 else "")
            said.append(
                f"Of {counted(len(run.annotators), 'annotator')} {len(below):,} {'is' if len(below) == 1 else 'are'} "
                f"rated wrong more often than right ({names}), and gave {share:.1%} of the labels."
            )
        else:
            said.append("No annotator is rated wrong more often than right.")
        count = sum(isinstance(block, Note) for block in _warnings(run))
        said.append(f"{counted(count, 'warning')} below." if count else "Nothing warns of these estimates.")
    said += policy.in_short(run)
    return said


def _warnings(run: Run) -> list[Note | Text]:
    found: list[Note | Text] = [Note(w.title, _sentence(w.finding), w.advice) for w in warnings_of(run)]
    leaning = doubtful.length_note(run)
    if leaning:
        found.append(leaning)
    found = [note for note in (_unfinished(run), no_better_than_chance(run)) if note] + found
    return found or [Text("None: nothing in the estimates looks like a known way to be wrong.")]


def _unfinished(run: Run) -> Note | None:
    last = max(run.rows("train"), key=lambda row: row["step"], default={"step": run.step})["step"]
    if last > run.step:
        text = (
            f"The run took {last:,} steps, and its last checkpoint is of step {run.step:,}; this report is of that one."
        )
        return Note("The run was stopped", text, "Start it again with the same command; it goes on from there.")
    return None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _how_to_read(run: Run) -> Section:
    section = Section("How to read this")
    texts = [
        "p = σ(Δ) is the probability that the policy's loss gives the pair's chosen response, Δ = L(rejected ≻ chosen) "
        "- L(chosen ≻ rejected); under DPO, Δ is β times the difference of the log-ratios to the reference.",
    ]
    if run.labels is not None:
        texts += [
            "A reliability η is the probability that a label of this annotator is right. w is the probability that one "
            "label is right, given the policy's Δ and all labels of the pair: logit w = ±(Δ/τ + Σ ± logit η). First "
            "sight is the step in which the policy first met the pair, before it learnt from it; last sight is a "
            "closing sweep over all pairs where there was one, else the last step that held the pair, under the "
            "reliabilities of the end.",
            "Intervals are 95 %: Wilson's for shares, Newcombe's for their differences, and for reliabilities those of "
            "the observed information on the scale of log-odds. They hold the policy's margins for given, which they "
            "are not quite.",
            "All figures come from annotators.parquet, posteriors.parquet, validation.parquet and metrics.jsonl in the "
            "run's folder; nemo-rpo export turns them into data.",
        ]
    section.blocks = [Text(text) for text in texts]
    return section
